"""`python -m handgrad explain` with one's own matrices: right numbers, clear errors."""

import itertools
import json
import re

import numpy as np
import pytest

from handgrad import __main__, explain

IMAGE = "1 2 -3 4 5; 0 1 0 2 1; 1 1 2 0 3; 2 2 1 0 1"
GEOMETRIES = {
    "strides": ["--stride", "2,1", "--padding", "1"],
    "dilated": ["--dilation", "2", "--padding", "SAME"],
    "asymmetric": ["--padding", "2,0;-1,1"],
    "all at once": ["--stride", "3,2", "--dilation", "1,2", "--padding", "0,1;2,-1"],
}


def truth(image, window, stride, padding, dilation):
    """The triples (p, k, h) by the definition alone, and the number of outputs."""
    pairs, counts = [], []
    for h, k, s, (low, high), d in zip(
        image, window, stride, padding, dilation, strict=True
    ):
        count = (h + low + high - d * (k - 1) - 1) // s + 1
        met = [
            (p, i, s * p + d * i - low)
            for p, i in itertools.product(range(count), range(k))
        ]
        pairs.append([m for m in met if 0 <= m[2] < h])
        counts.append(count)
    return [
        tuple(zip(*both, strict=True)) for both in itertools.product(*pairs)
    ], counts


def shown(out):
    """Each matrix of the printed steps by its name; the last of a name wins."""
    found, rows, name = {}, [], ""
    for line in [*out.splitlines(), ""]:
        match = re.fullmatch(r" +(?:(\S+) = )?[⎡⎢⎣\[] (.*) [⎤⎥⎦\]]", line)
        if match:
            name = match[1] or name
            rows += [match[2].split()] if match[2].strip() else []
        elif rows:
            found[name], rows = np.array(rows, float), []
    return found


@pytest.mark.parametrize(
    ("op", "geometry"),
    [
        ("conv", "strides"),
        ("conv", "all at once"),
        ("im2col", "dilated"),
        ("im2col", "all at once"),
        ("max_pool", "asymmetric"),
        ("max_pool", "all at once"),
        ("avg_pool", "strides"),
        ("avg_pool", "all at once"),
    ],
)
def test_any_geometry(op, geometry, capsys):
    words = GEOMETRIES[geometry]
    x = np.array([row.split() for row in IMAGE.split(";")], float)
    kernel = np.array([[1, 2], [-1, 0.5], [3, 0]])
    pool = op.endswith("pool")
    own = (
        ["--window", "3,2", "--stride", "1"] if pool else ["--kernel", "1 2;-1 .5;3 0"]
    )
    parser = [op, "--image", IMAGE, *own, *words]
    assert __main__.main(["explain", *parser]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    sentences = [line for line in out.splitlines() if not set("⎡⎢⎣[") & set(line)]
    assert max(map(len, sentences)) <= explain.WIDTH

    option = dict(zip(words[::2], words[1::2], strict=True))
    pair = lambda name: [int(n) for n in (option.get(name, "1") + ",").split(",") if n]
    stride, dilation = (pair(name) * 2 for name in ("--stride", "--dilation"))
    padding = {
        "1": [(1, 1), (1, 1)],
        "SAME": [(2, 2), (1, 1)],
        "2,0;-1,1": [(2, 0), (-1, 1)],
        "0,1;2,-1": [(0, 1), (2, -1)],
    }[option["--padding"]]
    met, counts = truth(x.shape, (3, 2), stride[:2], padding, dilation[:2])
    matrices = shown(out)
    error = np.arange(1, counts[0] * counts[1] + 1).reshape(counts)
    dx, dk = np.zeros_like(x), np.zeros_like(kernel)
    best = {}
    for p, k, h in met:
        if op == "max_pool":
            best.setdefault(p, h)
            best[p] = h if x[h] > x[best[p]] else best[p]
        else:  # the default error of a mean is a multiple of its count
            dx[h] += error[p] if op == "avg_pool" else error[p] * kernel[k]
            dk[k] += error[p] * x[h]
    for p, h in best.items():
        dx[h] += error[p]
    np.testing.assert_allclose(matrices["∂L/∂x"], dx, atol=1e-4)
    if not pool:
        np.testing.assert_allclose(matrices["∂L/∂k"], dk, atol=1e-4)
    differences = re.search(r"autodiff: (\S+) in the steps,\s(\S+) in", out)
    assert differences
    assert all(float(number) <= 1e-5 for number in differences.groups())


def test_dense_and_loss(capsys):
    words = ["dense", "--image", "1 2", "--kernel", "1 2 3; 4 5 6", "--bias", "1,1,1"]
    assert __main__.main(["explain", *words, "--error=-1 0 1"]) == 0
    matrices = shown(capsys.readouterr().out)
    np.testing.assert_array_equal(matrices["u"], [[10, 13, 16]])
    np.testing.assert_array_equal(matrices["∂L/∂x"], [[2, 2]])
    words = ["softmax_cross_entropy", "--image", "0 0;0 0", "--labels", "1 0"]
    assert __main__.main(["explain", *words, "--error", "4;2"]) == 0
    matrices = shown(capsys.readouterr().out)
    np.testing.assert_array_equal(matrices["∂L/∂x"], [[2, -2], [-1, 1]])


def test_files(tmp_path, capsys):
    np.save(tmp_path / "image.npy", np.array([[9, 8], [7, 6]], np.uint8))
    (tmp_path / "kernel.txt").write_text("1,0\n0,1\n")
    words = ["--image", f"{tmp_path}/image.npy", "--kernel", f"{tmp_path}/kernel.txt"]
    assert __main__.main(["explain", "conv", *words]) == 0
    matrices = shown(capsys.readouterr().out)
    np.testing.assert_array_equal(matrices["x"], [[9, 8], [7, 6]])
    np.testing.assert_array_equal(matrices["k"], np.eye(2))


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_only_in_a_terminal(environment, monkeypatch, capsys):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    __main__.main(["explain", "dense"])
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    __main__.main(["explain", "dense"])
    coloured = capsys.readouterr().out
    assert ("\x1b" in coloured) == (not environment)
    assert re.sub(r"\x1b\[[\d;]+m", "", coloured) == plain


BAD = {
    "conv --image '1 2; 3'": "row 2 has 1, row 1 has 2",
    "conv --image '1 a'": "--image: 'a' is no number",
    "conv --image ''": "--image must be a matrix",
    "conv --image 'nan 1'": "--image must hold finite numbers",
    "conv --image nowhere.npy": "nowhere.npy cannot be read: No such file",
    "conv --image broken.npy": "broken.npy cannot be read",
    "conv --image words.npy": "words.npy holds <U1, no real numbers",
    "conv --image cube.npy": "--image must be a matrix with numbers, got shape (2, 2,",
    "conv --image large.npy": "--image (=17×2) must have at most 16 rows",
    "im2col --image wide.npy": "X is 4×225 and would take 1139 columns of the 200",
    "conv --kernel '1 2 3 4 5'": "spans 5 pixels and does not fit an image of 4",
    "conv --error '1 2 3'": "error must be 2×2 here, got 1×3",
    "conv --bias '1 2'": "bias must be one number here, got 2",
    "conv --stride 0": "stride (=0) must be at least 1",
    "conv --stride one": "--stride: 'one' is no whole number",
    "conv --dilation 1,2,3": "--dilation (='1,2,3') must be N or ROWS,COLUMNS",
    "conv --padding FULL": "padding (='FULL') must be 'SAME'",
    "conv --padding 1,2,3": "--padding (='1,2,3') must be a name",
    "conv --padding=-3": "must not crop more than the 4 pixels",
    "conv --window 2": "conv takes no --window; it takes --image, --kernel",
    "max_pool --padding 3": "a window lies wholly in padding",
    "max_pool --error 1": "error must be 2×2 here, got 1×1",
    "dense --kernel '1 2'": "kernel (=1×2) must have a row for each of the 3 columns",
    "softmax_cross_entropy --labels '0 3'": "labels must be whole numbers from 0 to 2",
    "softmax_cross_entropy --labels 0": "labels must be 2 here",
    "dense --html page.html": "--html shows conv, im2col, max_pool, avg_pool, not",
    "conv --html nowhere/page.html": "nowhere/page.html: No such file or directory",
    "conv --html page.html --image tall.npy": "up to 10 rows and columns: image has 11",
    "conv --html page.html --bias 10000": "shows numbers up to 9999: bias has larger",
    "conv --html page.html --padding 10": "shows numbers up to 9: padding has larger",
    "relu": "example (='relu') must be one of conv, max_pool",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_clear_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.npy").write_text("nothing")
    np.save("words.npy", np.array(["a"]))
    np.save("cube.npy", np.zeros((2, 2, 2)))
    np.save("large.npy", np.zeros((17, 2)))
    np.save("tall.npy", np.ones((11, 4)))
    np.save("wide.npy", np.full((16, 16), 100))
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
    assert __main__.main(["explain", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("python -m handgrad: explain: ")
    assert BAD[line] in err
    assert not (tmp_path / "page.html").exists()


def test_html_holds_the_settings(tmp_path, capsys):
    path = tmp_path / "page.html"
    words = ["--image", "1 2 3;4 5 6", "--kernel", ".5 1", "--stride", "1,2"]
    assert __main__.main(["explain", "im2col", *words, "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    island = re.search(r'id="configuration">(.*?)</script>', path.read_text("utf-8"))
    assert json.loads(island[1]) == {
        "op": "conv",
        "image": [[1, 2, 3], [4, 5, 6]],
        "error": [[1], [2]],
        "kernel": [[0.5, 1]],
        "bias": 0,
        "window": [1, 2],
        "stride": [1, 2],
        "dilation": [1, 1],
        "padding": [[0, 0], [0, 0]],
    }
