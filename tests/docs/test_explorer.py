"""The explorer in a browser: every number it shows is handgrad's, and it never shows
one that does not belong to the settings.

The settings are drawn, entered in the page's own fields, and every frame of every
direction is read back from its tables and sentences.
"""

import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import handgrad
from handgrad import __main__
from handgrad.explain import explorer

webdriver = pytest.importorskip(
    "selenium.webdriver",
    reason="selenium is not installed: pip install -e '.[docs]'",
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver on the path"
)

READ = """
const read = () => ({
  matrices: Object.fromEntries([...document.querySelectorAll('.matrix')].map((m) => [
    m.dataset.name, [...m.querySelectorAll('tr')].map(
      (row) => [...row.cells].map((cell) => cell.innerText.trim()))])),
  one: document.querySelector('#one .sum').innerText,
  two: document.querySelector('#two .sum').innerText,
  say: document.querySelector('#say').innerText,
  verdict: document.querySelector('#verdict').innerText,
  count: document.querySelector('#count').innerText,
});
const enter = (field, text) => {
  const input = document.querySelector(`[data-field="${field}"]`);
  if (!input) throw new Error(field);
  input.value = text;
  input.dispatchEvent(new Event('input'));
};
"""
ENTER = (
    READ
    + """
const [op, numbers, grids] = arguments;
document.querySelector(`[data-op="${op}"]`).click();
// In any order: what does not fit in between is marked, and then forgotten.
for (const [name, pair] of Object.entries(numbers))
  pair.forEach((n, i) => enter(`${name}.${i}`, n));
for (const [name, rows] of Object.entries(grids))
  rows.forEach((row, r) => row.forEach((n, c) => enter(`${name}.${r}.${c}`, n)));
const found = {};
for (const tab of ['forward', 'kernel', 'input']) {
  const button = document.querySelector(`[data-direction="${tab}"]`);
  if (button.getAttribute('aria-disabled') === 'true') continue;
  button.click();
  document.querySelector('#first').click();
  found[tab] = [read()];
  const step = document.querySelector('#step');
  while (+step.value < +step.max) {
    document.querySelector('#next').click();
    found[tab].push(read());
  }
}
return found;
"""
)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path):
    """The page freshly opened, as a newcomer sees it; its console must stay silent."""
    path = tmp_path / "explorer.html"
    path.write_text(explorer.page(), encoding="utf-8")
    browser.set_window_size(1280, 1000)
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert not re.search(r"NaN|undefined|Infinity|null", text(browser))


def text(browser):
    return browser.execute_script("return document.body.innerText")


def number(cell):
    return float(cell.replace("−", "-").replace("∞", "inf"))


def numbers(rows):
    return np.array([[number(cell) for cell in row] for row in rows])


def halves(random, shape):
    """Small numbers that print exactly; whole ones have ties among them."""
    return random.integers(-9, 10, shape) / random.choice([1, 2])


def every_window_sees(image, window, stride, dilation, low, output):
    """Whether each window has a pixel of the image, in one dimension."""
    return all(
        any(0 <= stride * p + dilation * k - low < image for k in range(window))
        for p in range(output)
    )


def drawn(seed):
    """A layer that fits: op, geometry, and small numbers with ties among them."""
    random = np.random.default_rng(seed)
    op = ("conv", "conv", "max_pool", "avg_pool")[seed % 4]
    integers = lambda low, high: tuple(int(n) for n in random.integers(low, high, 2))
    while True:
        image, window = integers(1, 7), integers(1, 5)
        stride, dilation = integers(1, 4), integers(1, 4)
        before, after = integers(-2, 4), integers(-2, 4)
        padding = tuple(zip(before, after, strict=True))
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
        if any(
            h + low + high < e or min(low, high) <= -h
            for h, (low, high), e in zip(image, padding, extent, strict=True)
        ):
            continue
        output = tuple(
            (h + low + high - e) // s + 1
            for h, (low, high), e, s in zip(image, padding, extent, stride, strict=True)
        )
        sees = zip(image, window, stride, dilation, before, output, strict=True)
        if op == "max_pool" and not all(
            map(every_window_sees, *zip(*sees, strict=True))
        ):
            continue
        return {
            "op": op,
            "window": window,
            "stride": stride,
            "dilation": dilation,
            "padding": padding,
            "image": halves(random, image),
            "error": halves(random, output),
            "kernel": halves(random, window) if op == "conv" else None,
            "bias": float(random.integers(-3, 4)) if op == "conv" else None,
        }


def layer(c):
    """handgrad's own op of a drawn layer, on plain matrices."""
    options = {"strides": c["stride"], "padding": c["padding"]}
    if c["op"] == "conv":

        def conv(x, k, b):
            kernel = jnp.expand_dims(k, (2, 3))
            y = handgrad.conv(
                jnp.expand_dims(x, 2),
                kernel,
                b,
                kernel_dilation=c["dilation"],
                **options,
            )
            return jnp.squeeze(y, 2)

        return conv
    pool = functools.partial(getattr(handgrad, c["op"]), window_shape=c["window"])
    options["window_dilation"] = c["dilation"]
    return lambda x: jnp.squeeze(pool(jnp.expand_dims(x, 2), **options), 2)


def expected(c):
    """What each table must hold, by name."""
    f32 = lambda a: np.asarray(a, np.float32)
    x, error, geometry = f32(c["image"]), f32(c["error"]), (c["padding"], c["stride"])
    column = error.reshape(1, -1)
    zeros = lambda a, pads, apart: lax.pad(
        a,
        np.float32(0),
        [(*pair, n - 1) for pair, n in zip(pads, apart, strict=True)],
    )
    far = zeros(error, [(0, 0)] * 2, c["stride"])
    extent = [d * (k - 1) + 1 for d, k in zip(c["dilation"], c["window"], strict=True)]
    around = [
        (e - 1 - low, h + low - n)
        for e, (low, _), h, n in zip(
            extent, c["padding"], x.shape, far.shape, strict=True
        )
    ]
    same = {"x": x, "pad(x)": zeros(x, c["padding"], (1, 1)), "δ": error, "dY": column}
    same |= {"dilate(δ)": far}
    padding, strides = geometry
    options = {"strides": strides, "padding": padding, "kernel_dilation": c["dilation"]}
    im2col = lambda image: handgrad.im2col(image, c["window"], **options)
    X, to_image = jax.vjp(im2col, jnp.expand_dims(x, 2))
    col2im = lambda columns: jnp.squeeze(to_image(jnp.asarray(columns))[0], 2)
    if c["op"] == "conv":
        k, b = f32(c["kernel"]), f32([c["bias"]])
        u, vjp = jax.vjp(layer(c), x, k, b)
        dx, dk, db = vjp(jnp.asarray(error))
        wide = zeros(k, [(0, 0)] * 2, c["dilation"])
        name = "dilate(δ)" if max(strides) > 1 else "δ"
        kernel = "dilate(k)" if max(c["dilation"]) > 1 else "k"
        dX = k.reshape(-1, 1) @ column
        return same | {
            "k": k,
            "dilate(k)": wide,
            "u": u,
            "∂L/∂k": dk,
            "∂L/∂b": np.reshape(db, (1, 1)),
            f"pad({name})": zeros(far, around, (1, 1)),
            f"rot180({kernel})": np.rot90(wide, 2),
            "∂L/∂x": dx,
            "X": X,
            "K": k.reshape(1, -1),
            "Kᵀ": k.reshape(-1, 1),
            "Y": np.reshape(u, (1, -1)),
            "dK": np.reshape(dk, (1, -1)),
            "dX": dX,
            "col2im(dX)": col2im(dX),
        }
    u, vjp = jax.vjp(layer(c), x)
    (dx,) = vjp(jnp.asarray(error))
    if c["op"] == "max_pool":
        low = np.float32(-np.inf)
        pads = [(*pair, 0) for pair in padding]
        infinite = lax.pad(x, low, pads)
        X = handgrad.im2col(
            jnp.expand_dims(infinite, 2),
            c["window"],
            strides,
            kernel_dilation=c["dilation"],
        )
        X = np.asarray(X)
        place = np.argmax(X, 0)
        dX = np.where(np.arange(len(X))[:, None] == place, column, 0)
        same |= {"pad(x)": infinite, "t": place.reshape(error.shape)}
    else:
        dX = np.repeat(column / len(X), len(X), 0)
    return same | {
        "u": u,
        "∂L/∂x": dx,
        "X": X,
        "Y": np.reshape(u, (1, -1)),
        "dX": dX,
        "col2im(dX)": col2im(np.asarray(dX, np.float32)),
    }


def evaluated(sentence):
    """The left side's arithmetic of `name = a·b + … = value`, and the value."""
    _, formula, value = sentence.rsplit(" = ", 2)
    for written, python in (("·", "*"), ("−", "-"), ("b ", ""), (" / ", "/")):
        formula = formula.replace(written, python)
    assert re.fullmatch(r"(max)?[\d\s().*+/,-]+", formula), sentence
    if formula.startswith("max") and "," not in formula:
        formula = formula.removeprefix("max")
    return eval(formula, {"__builtins__": {}, "max": max}), number(value)


@pytest.mark.parametrize("seed", range(30))
def test_every_number_is_handgrads(seed, page):
    c = drawn(seed)
    before, after = zip(*c["padding"], strict=True)
    geometry = {
        "image": c["image"].shape,
        "before": before,
        "after": after,
        **{name: c[name] for name in ("window", "stride", "dilation")},
    }
    grids = {name: c[name].tolist() for name in ("image", "error")}
    if c["op"] == "conv":
        grids |= {"kernel": c["kernel"].tolist(), "bias": [[c["bias"]]]}
    frames = page.execute_script(ENTER, c["op"], geometry, grids)
    gradients = {"kernel", "input"} if c["op"] == "conv" else {"input"}
    assert set(frames) == {"forward", *gradients}
    truth, shown = expected(c), set()
    results = {"forward": ("u", "Y"), "kernel": ("∂L/∂k", "dK")}
    results["input"] = ("∂L/∂x", "col2im(dX)")
    for direction, told in frames.items():
        for frame in told:
            assert frame["verdict"] == "✓ Both routes give the same matrix."
            for name, rows in frame["matrices"].items():
                wanted = np.asarray(truth[name])
                assert (len(rows), len(rows[0])) == wanted.shape, name
                cells = [cell for row in rows for cell in row]
                for cell, value in zip(cells, wanted.ravel(), strict=True):
                    if cell:  # a result that is still to come has none
                        assert number(cell) == pytest.approx(value, rel=1e-5, abs=6e-5)
            for sentence, name in zip(
                (frame["one"], frame["two"]), results[direction], strict=True
            ):
                known = [
                    cell for row in frame["matrices"].get(name, ()) for cell in row
                ]
                known = [cell for cell in known if cell]
                if not sentence:
                    assert not known
                    continue
                left, value = evaluated(sentence)
                assert left == pytest.approx(value, abs=6e-4)
                assert value == number(known[-1])
        last = told[-1]["matrices"]
        for name in results[direction]:  # in the end nothing is missing
            assert all(cell for row in last[name] for cell in row)
            np.testing.assert_allclose(numbers(last[name]), truth[name], atol=6e-5)
        shown |= {name for frame in told for name in frame["matrices"]}
    assert {"u", "∂L/∂x", "X", "Y", "dX"} <= shown


def test_the_draws_meet_every_case():
    drawn_layers = [drawn(seed) for seed in range(30)]
    assert {c["op"] for c in drawn_layers} == {"conv", "max_pool", "avg_pool"}
    assert any(max(c["stride"]) > max(c["window"]) for c in drawn_layers)
    assert any(min(map(min, c["padding"])) < 0 for c in drawn_layers)
    assert any(max(c["dilation"]) > 1 and max(c["stride"]) > 1 for c in drawn_layers)


BAD = {
    "stride.0": ("0", "a", "", "1.5", "11"),
    "dilation.1": ("0", "4"),
    "window.0": ("5", "-1"),
    "image.1": ("2", "99"),
    "before.0": ("x", "-4", "11"),
    "image.0.2": ("", "a", "1/2", "--1", "99999", "1e3", "NaN", "Infinity"),
    "kernel.2.2": ("∞",),
    "bias.0.0": ("b",),
    "error.1.1": (".",),
}


@pytest.mark.parametrize("field", BAD)
def test_what_is_impossible_is_marked_where_it_is_entered(field, page):
    from selenium.webdriver.common.by import By

    good = page.execute_script(READ + "return read();")
    find = lambda: page.find_element(By.CSS_SELECTOR, f'[data-field="{field}"]')
    kept = find().get_attribute("value")
    for entry in BAD[field]:
        page.execute_script(READ + "enter(...arguments)", field, entry)
        marked = page.find_elements(By.CSS_SELECTOR, '[aria-invalid="true"]')
        assert marked
        name = field.split(".")[0]
        places = [m.get_attribute("data-field").split(".")[0] for m in marked]
        # A kernel that no longer fits its image is marked at either of the two.
        assert name in places or {name, *places} <= {"image", "window", "dilation"}
        notes = [
            note.text
            for note in page.find_elements(By.CSS_SELECTOR, ".problem")
            if note.text
        ]
        assert notes
        state = page.execute_script(READ + "return read();")
        assert state["matrices"] == {}
        assert state["one"] == state["two"] == state["verdict"] == ""
        assert "impossible" in state["say"]
        assert not page.find_element(By.ID, "next").is_enabled()
        assert not re.search("NaN|undefined|Infinity", text(page).replace(entry, ""))
        page.execute_script(READ + "enter(...arguments)", field, kept)
        assert page.find_elements(By.CSS_SELECTOR, '[aria-invalid="true"]') == []
        assert page.execute_script(READ + "return read();") == good


def test_everything_impossible_is_marked_at_once(page):
    page.execute_script(READ + "enter('window.0', '7'); enter('image.0.2', 'a')")
    marked = page.execute_script(
        "return [...document.querySelectorAll('[aria-invalid=true]')].map("
        "(e) => e.dataset.field)"
    )
    assert marked == ["window.0", "image.0.2"]


def test_a_window_without_a_maximum_is_marked(page):
    page.execute_script("document.querySelector('[data-op=max_pool]').click()")
    page.execute_script(READ + "enter('before.0', '3'); enter('window.0', '3')")
    assert "lies wholly in padding" in text(page)
    assert page.execute_script(READ + "return read();")["matrices"] == {}
    page.execute_script(READ + "enter('before.0', '2')")
    assert "lies wholly in padding" not in text(page)


def test_keyboard(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    body = page.find_element(By.ID, "panel")
    count = lambda: page.find_element(By.ID, "count").text
    assert count() == "1 / 4"
    body.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert count() == "3 / 4"
    body.send_keys(Keys.ARROW_LEFT)
    assert count() == "2 / 4"
    body.send_keys(Keys.END)
    assert count() == "4 / 4"
    body.send_keys(Keys.ARROW_RIGHT)  # there is no further one
    assert count() == "4 / 4"
    body.send_keys(Keys.HOME, Keys.SPACE)
    play = page.find_element(By.ID, "play")
    assert play.get_attribute("aria-label") == "Pause"
    body.send_keys(Keys.SPACE)
    assert play.get_attribute("aria-label") == "Play"
    # Typing in a grid is no stepping; arrows go from row to row, the result follows.
    cell = page.find_element(By.CSS_SELECTOR, '[data-field="image.0.0"]')
    cell.send_keys(Keys.ARROW_DOWN)
    assert page.switch_to.active_element.get_attribute("data-field") == "image.1.0"
    cell.click()
    cell.send_keys("10")
    assert count() == "1 / 4"
    assert page.execute_script(READ + "return read();")["one"].endswith("= 27")
    # A click on a result goes to where it is made; tabs take arrows.
    page.find_element(By.ID, "last").click()
    page.find_element(By.CSS_SELECTOR, '[data-name="u"] td:nth-child(2)').click()
    assert count() == "2 / 4"
    tab = page.find_element(By.CSS_SELECTOR, '[aria-selected="true"]')
    tab.send_keys(Keys.ARROW_RIGHT)
    chosen = page.find_element(By.CSS_SELECTOR, '[aria-selected="true"]')
    assert chosen.text == "Kernel gradient"


def test_playing_ends_at_the_last_step(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    page.execute_script(
        "document.querySelector('#speed').value = '400';"
        "document.querySelector('#play').click();"
    )
    WebDriverWait(page, 10).until(
        lambda page: page.find_element(By.ID, "count").text == "4 / 4"
    )
    assert page.find_element(By.ID, "play").get_attribute("aria-label") == "Play"


CONTRAST = """
const shine = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255).map(
    (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const back = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)|transparent/.test(colour)) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const written = 'h1, h2, h3, p, td, th, label, button, input';
return [...document.querySelectorAll(written)].filter((e) =>
  (e.innerText || e.value) && e.offsetParent && !e.disabled
  && e.ariaDisabled !== 'true' && !e.className.includes('zero')
).map((e) => {
  const [a, b] = [getComputedStyle(e).color, back(e)].map(shine).sort((a, b) => b - a);
  return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_readable_on_any_screen_in_light_and_dark(width, scheme, page):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": scheme}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
    try:
        page.refresh()
        is_open = page.execute_script("return document.querySelector('#setup').open")
        assert is_open == (width > 900)  # on a phone the steps come first
        page.execute_script("document.querySelector('#setup').open = true")
        for direction in ("forward", "kernel", "input"):
            page.execute_script(
                f"document.querySelector('[data-direction={direction}]').click();"
                "document.querySelector('#last').click()"
            )
            assert page.execute_script(
                "return document.documentElement.scrollWidth <= innerWidth"
            )
            for ratio, where in page.execute_script(CONTRAST):
                assert ratio >= 4.5, where
        for height, where in page.execute_script(
            "return [...document.querySelectorAll('button, select')].map("
            "(e) => [e.getBoundingClientRect().height, e.outerHTML.slice(0, 80)])"
        ):
            assert height >= 44, where
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_an_address_opens_an_example(page):
    address = page.current_url
    for name, title in (
        ("stride%202", "stride 2"),
        ("max%20pool%20in%20blocks", "max pool in blocks"),
        ("nothing", "the article's convolution"),
        ("%", "the article's convolution"),
        ("toString", "the article's convolution"),
    ):
        page.get(f"{address}#{name}")
        chosen = "return document.querySelector('#examples').value"
        assert page.execute_script(chosen) == title
        assert page.execute_script(READ + "return read();")["matrices"]


def test_everything_has_a_name_and_nothing_is_fetched(page):
    nameless = page.execute_script(
        "return [...document.querySelectorAll('input, select, button, table')].filter("
        "(e) => !(e.ariaLabel || e.innerText || e.labels?.length || e.role"
        "  || e.querySelector('caption'))).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert (
        page.execute_script(
            "return performance.getEntriesByType('resource').filter("
            "(e) => !e.name.startsWith('data:')).map((e) => e.name)"
        )
        == []
    )


def test_ones_own_page(browser, tmp_path, capsys):
    path = tmp_path / "own.html"
    words = ["--image", "1 2 3; 4 5 6", "--window", "2,1", "--padding", "0,1;0,0"]
    assert __main__.main(["explain", "max_pool", *words, "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    browser.get(path.as_uri())
    browser.execute_script("document.querySelector('#last').click()")
    matrices = browser.execute_script(READ + "return read();")["matrices"]
    assert matrices["u"] == [["4", "5", "6"]]
    assert matrices["t"] == [["1", "1", "1"]]
    assert browser.get_log("browser") == []
    found = re.search(r'id="configuration">(.*?)</script>', path.read_text())
    assert json.loads(found[1])["op"] == "max_pool"
