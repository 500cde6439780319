"""Cases and layers of convolution, im2col and col2im."""

from handgrad.cases.case import Case, normal


def _conv(name, x, kernel, *, bias=False, network=None, **options) -> Case:
    samples = {"x": normal(*x), "kernel": normal(*kernel)}
    if bias:
        samples["bias"] = normal(kernel[-1])
    return Case("conv", name, samples, options, network)


def _general(name, lhs, rhs, window_strides, padding, **options) -> Case:
    samples = {"lhs": normal(*lhs), "rhs": normal(*rhs)}
    options |= {"window_strides": window_strides, "padding": padding}
    return Case("conv_general_dilated", name, samples, options)


def _conv_transpose(name, lhs, rhs, strides, padding, **options) -> Case:
    samples = {"lhs": normal(*lhs), "rhs": normal(*rhs)}
    options |= {"strides": strides, "padding": padding}
    return Case("conv_transpose", name, samples, options)


CASES = (
    _conv_transpose("SAME", (2, 4, 5, 3), (4, 3, 3, 2), (2, 3), "SAME"),
    _conv_transpose(
        "dilated kernel",
        (2, 4, 3, 2),
        (3, 2, 2, 3),
        (2, 1),
        "VALID",
        rhs_dilation=(1, 2),
    ),
    _conv_transpose(
        "PyTorch's padding, turned kernel",
        (2, 3, 4, 5),
        (3, 3, 3, 2),
        (2, 2),
        ((1, 0), (1, 1)),
        transpose_kernel=True,
        use_consistent_padding=True,
        dimension_numbers=("NCHW", "HWOI", "NHWC"),
    ),
    _general("channels first", (2, 3, 7, 6), (4, 3, 3, 2), (2, 1), "SAME"),
    _general(
        "batch groups",
        (6, 5, 5, 2),
        (3, 3, 2, 9),
        (1, 2),
        "VALID",
        batch_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    _general(
        "mixed layouts",
        (5, 2, 6, 4),
        (6, 3, 2, 2),
        (2, 1),
        ((2, 1), (-1, 2)),
        lhs_dilation=(1, 2),
        rhs_dilation=(2, 1),
        feature_group_count=2,
        dimension_numbers=("HNWC", "OHIW", "CWNH"),
    ),
    _general("no spatial dimension", (3, 4), (5, 4), (), "VALID"),
    _general("4-D", (1, 2, 3, 3, 2, 3), (3, 2, 2, 2, 1, 2), (1, 2, 1, 1), "SAME"),
    _general("kernel above image", (2, 3, 2, 2), (4, 3, 3, 3), (1, 1), "VALID"),
    _conv("article 4x4 with 3x3", (1, 4, 4, 1), (3, 3, 1, 1), padding="VALID"),
    _conv("lenet5 conv 1", (64, 28, 28, 1), (5, 5, 1, 6), bias=True, network="lenet5"),
    _conv(
        "lenet5 conv 2",
        (64, 14, 14, 6),
        (5, 5, 6, 16),
        bias=True,
        padding="VALID",
        network="lenet5",
    ),
    _conv("strided", (2, 9, 8, 3), (3, 3, 3, 4), strides=(2, 3)),
    _conv("stride above kernel", (2, 9, 9, 2), (2, 2, 2, 3), strides=3),
    _conv("dilated kernel", (2, 9, 8, 3), (3, 2, 3, 4), kernel_dilation=(2, 3)),
    _conv("dilated input", (2, 5, 4, 3), (3, 3, 3, 2), input_dilation=(2, 3)),
    _conv("asymmetric padding", (2, 5, 6, 2), (3, 3, 2, 3), padding=((2, 0), (0, 3))),
    _conv("negative padding", (2, 8, 9, 2), (3, 3, 2, 3), padding=((-1, 1), (-2, -1))),
    _conv(
        "all at once",
        (2, 7, 6, 4),
        (3, 2, 2, 6),
        strides=(3, 2),
        padding=((2, 1), (-1, 3)),
        input_dilation=(2, 1),
        kernel_dilation=(1, 2),
        feature_group_count=2,
    ),
    _conv("tiles", (2, 7, 9, 2), (2, 4, 2, 3), strides=(2, 4), padding=(1, 0)),
    _conv("grouped", (2, 6, 6, 6), (3, 3, 2, 9), feature_group_count=3),
    _conv(
        "groups of as many outputs",
        (2, 5, 6, 12),
        (3, 2, 3, 12),
        feature_group_count=4,
        strides=(2, 1),
    ),
    _conv("narrow groups", (2, 5, 4, 48), (3, 3, 8, 36), feature_group_count=6),
    _conv(
        "depthwise, one filter",
        (2, 7, 6, 4),
        (3, 2, 1, 4),
        feature_group_count=4,
        strides=(2, 1),
        kernel_dilation=(1, 2),
    ),
    _conv("depthwise", (2, 6, 6, 4), (3, 3, 1, 8), feature_group_count=4, strides=2),
    _conv("kernel above image", (2, 2, 3, 2), (5, 5, 2, 3)),
    _conv("one pixel", (3, 1, 1, 4), (1, 1, 4, 5)),
    _conv("1-D", (2, 11, 3), (4, 3, 5), strides=2, bias=True),
    _conv("3-D", (1, 4, 5, 4, 2), (2, 3, 2, 2, 3), strides=(1, 2, 1), bias=True),
    _conv("unbatched", (6, 6, 2), (3, 3, 2, 3), bias=True),
    _conv("empty batch", (0, 4, 4, 1), (3, 3, 1, 2)),
    Case(
        "im2col",
        "article 3x3, 2x2",
        {"x": normal(3, 3, 1)},
        {"window_shape": (2, 2)},
    ),
    Case(
        "im2col",
        "lenet5 conv 2",
        {"x": normal(64, 14, 14, 6)},
        {"window_shape": (5, 5)},
        network="lenet5",
    ),
    Case(
        "im2col",
        "strided, dilated, padded",
        {"x": normal(2, 7, 6, 3)},
        {
            "window_shape": (3, 2),
            "strides": (2, 1),
            "padding": ((1, 2), (-1, 1)),
            "kernel_dilation": (1, 2),
        },
    ),
    Case("im2col", "1-D", {"x": normal(2, 9, 3)}, {"window_shape": (4,), "strides": 3}),
    Case("im2col", "3-D", {"x": normal(3, 4, 5, 2)}, {"window_shape": (2, 2, 3)}),
    Case(
        "col2im",
        "article 3x3, 2x2",
        {"columns": normal(4, 4)},
        {"image_shape": (3, 3), "window_shape": (2, 2)},
    ),
    Case(
        "col2im",
        "lenet5 conv 2",
        {"columns": normal(64, 150, 100)},
        {"image_shape": (14, 14), "window_shape": (5, 5)},
        network="lenet5",
    ),
    Case(
        "col2im",
        "strided, dilated, padded",
        {"columns": normal(2, 18, 16)},
        {
            "image_shape": (7, 6),
            "window_shape": (3, 2),
            "strides": (2, 1),
            "padding": ((1, 2), (-1, 1)),
            "kernel_dilation": (1, 2),
        },
    ),
)


def _layer(network, name, x, kernel, **options) -> Case:
    return _conv(f"{network} {name}", x, kernel, network=network, **options)


def _transposed(network, name, lhs, rhs) -> Case:
    samples = {"lhs": normal(*lhs), "rhs": normal(*rhs)}
    options = {"strides": (2,) * (len(lhs) - 2), "padding": "SAME"}
    return Case("conv_transpose", f"{network} {name}", samples, options, network)


def _depthwise(network, name, image, size, **options) -> Case:
    channels = image[-1]
    name = f"depthwise {size}x{size}{name}"
    kernel = (size, size, 1, channels)
    options |= {"feature_group_count": channels}
    return _layer(network, name, image, kernel, **options)


# Batches such that JAX's own forward pass takes about 2 to 60 ms on two cores. "/2" is
# a stride, "G=4" four groups, "64-128" as many channels in and out.
LAYERS = (
    next(case for case in CASES if case.name == "article 4x4 with 3x3"),
    _layer("mnist cnn", "3x3 1-32 28px", (64, 28, 28, 1), (3, 3, 1, 32)),
    _layer(
        "alexnet",
        "11x11/4 3-96 227px",
        (4, 227, 227, 3),
        (11, 11, 3, 96),
        strides=4,
        padding="VALID",
    ),
    _layer(
        "alexnet",
        "5x5 G=2 96-256 27px",
        (8, 27, 27, 96),
        (5, 5, 48, 256),
        feature_group_count=2,
    ),
    _layer("alexnet", "5x5 64-192 27px", (8, 27, 27, 64), (5, 5, 64, 192)),
    _layer("alexnet", "3x3 256-384 13px", (8, 13, 13, 256), (3, 3, 256, 384)),
    _layer("vgg16", "3x3 3-64 224px", (2, 224, 224, 3), (3, 3, 3, 64)),
    _layer("vgg16", "3x3 64 112px", (2, 112, 112, 64), (3, 3, 64, 64)),
    _layer("vgg16", "3x3 128 56px", (4, 56, 56, 128), (3, 3, 128, 128)),
    _layer("vgg16", "3x3 256 28px", (4, 28, 28, 256), (3, 3, 256, 256)),
    _layer("vgg16", "3x3 512 14px", (4, 14, 14, 512), (3, 3, 512, 512)),
    _layer("vgg-small", "3x3 32 32px", (32, 32, 32, 32), (3, 3, 32, 32)),
    _layer("vgg-small", "3x3 64-128 8px", (32, 8, 8, 64), (3, 3, 64, 128)),
    _layer("vgg-small", "3x3 64 16px", (32, 16, 16, 64), (3, 3, 64, 64)),
    _layer("resnet20", "3x3 3-16 32px", (32, 32, 32, 3), (3, 3, 3, 16)),
    _layer("inception", "1x7 128 17px", (8, 17, 17, 128), (1, 7, 128, 128)),
    _layer("inception", "7x1 128 17px", (8, 17, 17, 128), (7, 1, 128, 128)),
    _layer(
        "resnet18",
        "7x7/2 3-64 224px",
        (8, 224, 224, 3),
        (7, 7, 3, 64),
        strides=2,
        padding=((3, 3), (3, 3)),
    ),
    _layer("resnet18", "3x3 64 56px", (8, 56, 56, 64), (3, 3, 64, 64)),
    _layer("resnet18", "3x3 128 28px", (8, 28, 28, 128), (3, 3, 128, 128)),
    _layer("resnet18", "3x3 256 14px", (8, 14, 14, 256), (3, 3, 256, 256)),
    _layer("resnet18", "3x3 512 7px", (8, 7, 7, 512), (3, 3, 512, 512)),
    # Of images of 112 and 64 px.
    _layer("resnet18", "3x3 512 4px", (8, 4, 4, 512), (3, 3, 512, 512)),
    _layer("resnet18", "3x3 512 2px", (8, 2, 2, 512), (3, 3, 512, 512)),
    _layer(
        "resnet18", "3x3/2 256-512 4px", (8, 4, 4, 256), (3, 3, 256, 512), strides=2
    ),
    _layer(
        "resnet18", "3x3/2 64-128 56px", (8, 56, 56, 64), (3, 3, 64, 128), strides=2
    ),
    _layer(
        "resnet18", "1x1/2 64-128 56px", (8, 56, 56, 64), (1, 1, 64, 128), strides=2
    ),
    _layer("resnet50", "1x1 64-256 56px", (8, 56, 56, 64), (1, 1, 64, 256)),
    _layer("resnet50", "1x1 256-64 56px", (8, 56, 56, 256), (1, 1, 256, 64)),
    _layer("resnet50", "3x3/2 128 56px", (8, 56, 56, 128), (3, 3, 128, 128), strides=2),
    _layer(
        "resnet50", "1x1/2 256-512 56px", (8, 56, 56, 256), (1, 1, 256, 512), strides=2
    ),
    _layer(
        "resnext18",
        "3x3/2 G=32 128-256 7px",
        (8, 7, 7, 128),
        (3, 3, 4, 256),
        feature_group_count=32,
        strides=2,
    ),
    _layer(
        "resnext18",
        "3x3/2 G=32 256-512 4px",
        (8, 4, 4, 256),
        (3, 3, 8, 512),
        feature_group_count=32,
        strides=2,
    ),
    _layer(
        "resnext50",
        "3x3 G=32 128 28px",
        (8, 28, 28, 128),
        (3, 3, 4, 128),
        feature_group_count=32,
    ),
    _layer(
        "resnext50",
        "3x3 G=4 192 28px",
        (8, 28, 28, 192),
        (3, 3, 48, 192),
        feature_group_count=4,
    ),
    _layer(
        "shufflenet",
        "1x1 G=4 272-68 28px",
        (8, 28, 28, 272),
        (1, 1, 68, 68),
        feature_group_count=4,
    ),
    _depthwise("mobilenet", " 64 56px", (8, 56, 56, 64), 3),
    _depthwise("mobilenet", "/2 64 112px", (4, 112, 112, 64), 3, strides=2),
    _layer(
        "mobilenet_v2", "3x3/2 3-32 224px", (8, 224, 224, 3), (3, 3, 3, 32), strides=2
    ),
    _depthwise("mobilenet_v2", "/2 144 56px", (4, 56, 56, 144), 3, strides=2),
    _depthwise("mobilenet_v2", " 384 14px", (8, 14, 14, 384), 3),
    _layer("mobilenet_v2", "1x1 144-24 56px", (8, 56, 56, 144), (1, 1, 144, 24)),
    _depthwise("efficientnet", " 72 40px", (4, 40, 40, 72), 5),
    _depthwise("efficientnet", "/2 72 40px", (4, 40, 40, 72), 5, strides=2),
    _depthwise("proxylessnas", "/2 144 56px", (4, 56, 56, 144), 7, strides=2),
    _depthwise("convnext", " 96 28px", (8, 28, 28, 96), 7),
    _layer(
        "convnext", "2x2/2 96-192 56px", (8, 56, 56, 96), (2, 2, 96, 192), strides=2
    ),
    _layer("convnext", "4x4/4 3-96 224px", (8, 224, 224, 3), (4, 4, 3, 96), strides=4),
    _layer(
        "vit", "16x16/16 3-768 224px", (2, 224, 224, 3), (16, 16, 3, 768), strides=16
    ),
    _layer(
        "deeplab",
        "3x3 rate 2 256 28px",
        (2, 28, 28, 256),
        (3, 3, 256, 256),
        kernel_dilation=2,
    ),
    _layer(
        "deeplab",
        "3x3 rate 4 256 28px",
        (2, 28, 28, 256),
        (3, 3, 256, 256),
        kernel_dilation=4,
    ),
    _layer("srcnn", "9x9 1-64 96px", (2, 96, 96, 1), (9, 9, 1, 64)),
    _layer("srcnn", "5x5 32-1 96px", (4, 96, 96, 32), (5, 5, 32, 1)),
    _transposed("unet", "2x2/2 128-64 28px", (8, 28, 28, 128), (2, 2, 128, 64)),
    _layer("dcgan", "4x4/2 3-64 64px", (32, 64, 64, 3), (4, 4, 3, 64), strides=2),
    _transposed("dcgan", "4x4/2 512-256 4px", (32, 4, 4, 512), (4, 4, 512, 256)),
    _transposed("dcgan", "4x4/2 128-64 14px", (32, 14, 14, 128), (4, 4, 128, 64)),
    _transposed("dcgan", "4x4/2 128-64 28px", (8, 28, 28, 128), (4, 4, 128, 64)),
    _transposed("dcgan", "4x4/2 64-3 32px", (16, 32, 32, 64), (4, 4, 64, 3)),
    _transposed("hifigan", "4/2 128-64", (4, 2000, 128), (4, 128, 64)),
    _transposed("unet3d", "2x2x2/2 64 8px", (1, 8, 8, 8, 64), (2, 2, 2, 64, 64)),
    _layer(
        "wavenet",
        "2 taps rate 8 64-128",
        (4, 8000, 64),
        (2, 64, 128),
        padding=((8, 0),),
        kernel_dilation=8,
    ),
    _layer(
        "wav2vec2",
        "10/5 1-512",
        (4, 16000, 1),
        (10, 1, 512),
        strides=5,
        padding="VALID",
    ),
    _layer("whisper", "3 80-384", (4, 3000, 80), (3, 80, 384)),
    _layer("unet3d", "3x3x3 16-32 24px", (1, 24, 24, 24, 16), (3, 3, 3, 16, 32)),
    _layer(
        "r3d",
        "3x7x7/1x2x2 3-64 28px",
        (1, 8, 28, 28, 3),
        (3, 7, 7, 3, 64),
        strides=(1, 2, 2),
    ),
)
