"""Measures every rule on the layers of real networks, next to autodiff and PyTorch.

`python -m experiments.benchmark ops` takes the layers of `handgrad.cases.LAYERS` in
each direction: forward, each gradient alone, and all of them together. Three sides
compute the same numbers in turn: handgrad, JAX's own gradient ("autodiff") and, where
it is installed, PyTorch. `--help` lists the flags. It prints a table and a summary, and
writes to the work directory

    benchmark.json    every number, the device and the versions; anew after each layer
    benchmark.png     the speed of handgrad and of PyTorch, relative to autodiff's

In `benchmark.json`, `rows` has a row for each layer and direction:

    formula                 what handgrad computed by
    ms, autodiff_ms, ...    median milliseconds a call
    autodiff_ratio          autodiff's time / handgrad's: above 1, handgrad is faster
    torch_ratio             PyTorch's time / handgrad's
    error, error_ratio      largest elementwise error against float64 on one or two of
                            the examples (`handgrad.measure`), and handgrad's /
                            autodiff's
    temp_bytes, ...         memory of the compiled function beside arguments and results
    compile_s, ...          seconds to trace and compile
    gflops, gbs             work done a second: the convolution's own multiplications
                            and additions, and the bytes of operands and results

`limits` holds what a matrix product and a copy reach on this machine in the same run;
`summary` holds geometric means and the rows that fall short; `failures` lists what
raised. What is missing or not finite is `null`. `finished` is false while it runs.

`python -m experiments.benchmark memory` counts what lives until the backward pass,
`python -m experiments.benchmark scale` measures how the cost of a step grows.

`python -m experiments.benchmark networks` takes whole networks: a step of SGD with
momentum, in turn by Flax ("flax"), by the same model of `handgrad.linen`'s modules
("handgrad"), by `handgrad.rewrite` of Flax's ("rewrite") and by PyTorch with the same
parameters. It writes `networks.json` and `networks.png`; a row has, beside the numbers
of each side,

    same_loss               whether all sides' first losses are the same
    speedup                 Flax's time / handgrad's
    rewrite_speedup         Flax's time / rewrite's
    torch_ratio             PyTorch's time / handgrad's
    rewrite_time            rewrite's time / handgrad's
    memory_ratio, ...       handgrad's / Flax's
"""
