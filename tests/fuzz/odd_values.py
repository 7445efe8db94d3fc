"""Awkward values, as YAML texts that fit behind a key, on a command line and into a list."""

from random import Random

LONG = "a/" * 2500
"""A path of 5,000 characters."""

CODE = (
    "hpv_model",
    "hpv_model.run",
    "hpv_model.Evil",
    "hpv_model.helper",
    "hpv_model.helper.X",
    "hpv_model.helper.make",
    "antigravity",
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "torch.optim.SGD",
    "cellbench.cli.fit.main",
)
"""Dotted names. The modules called hpv_model lie in the working folder and tell when they run."""

HOSTILE = (
    *CODE,
    *(f"{{class_path: {name}}}" for name in CODE),
    "{class_path: hpv_model.helper.X, init_args: {x: 1}}",
    "{class_path: os.system, init_args: {command: touch ../canary}}",
    "[hpv_model.helper.X]",
    "{x: hpv_model.helper.X}",
    "{import: hpv_model.helper}",
    "{config: lure.yaml}",
    '!!python/object/apply:os.system ["touch ../canary"]',
    "!!python/name:hpv_model.helper.X",
    "!!python/module:hpv_model.helper",
    "!!python/object/new:hpv_model.helper.X [1]",
)
"""What would import or run code, or follow a file, if it were taken at its word."""

SCALARS = (
    *("null", "~", "true", "false", "yes", "off", "0", "1", "-1", "2", "3.7", "-0.0", "1e-3"),
    *("1.0e-3", "1e400", "1.0e+308", ".inf", "-.inf", ".nan", "1_000", "0x10", "0o17", "017"),
    *("12:30:45", "2024-01-01", "0.1.2", "1,5", "10%", "--3", "1" + "0" * 18, str(2**31)),
    *(str(2**32), str(2**63), str(2**64), str(-(2**63)), "9" * 6000, "-" + "9" * 6000),
    *("0." + "0" * 400 + "1", "''", "' '", "a b", "abc", "ä", "'😀'", "'*'", "'%s%n%x'", "$HOME"),
    *('"a\\0b"', '"\\e[31mred\\e[0m"', '"\\n\\n"', '"\\u202eabc"', '"\\u2028"', '"\\ud800"'),
    *("'=1+1'", "'@x'", "'-'", "'--config'", "'{'", "'['", "'#'", "'${x}'", "'{{ 7*7 }}'"),
    *("x" * 300, "x" * 5000, LONG, "/" + LONG, "'" + "é" * 3000 + "'"),
    *("/dev/zero", "/dev/full", "/dev/stdin", "/proc/self/mem", "/", ".", "..", "fifo", "loop"),
    *("../outside/secret.txt", "nowhere/x.csv", "experiment.yaml", "~", "~nobody/x"),
    *("!!binary aGVsbG8=", "!!float x", "!!int x", "!!timestamp x", "!!null x", "!other x"),
)
"""Single values: of another type, out of every range, odd names and files."""

GROUPS = (
    *("{}", "[]", "[null]", "[1, 2]", "[a, b, c, d]", "[[]]", "[[[[1]]]]", "[1, a, {b: c}]"),
    *("{a: 1}", "{1: 2}", "{null: null}", "{a: {b: {c: 1}}}", "{? [a] : b}", "{a: null, b: .nan}"),
    *("{class_path: 3}", "{class_path: null}", "{class_path: x}", "{class_path: [a]}"),
    *("{init_args: {}}", "{class_path: SyntheticDataModule, init_args: 3}"),
    *("{name: focal}", "{name: [focal]}", "{epochs: 1}", "[{epochs: x}]", "[{lr: null}]"),
    *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!set {}", "{a: 1, a: 2}"),
    *("&a [*a]", "&a {b: *a}", "{x: &a {y: *a}}", "*unknown", "{<<: {a: 1}}", "{<<: [1]}"),
    "[" * 100 + "]" * 100,
    "[" * 3000 + "]" * 3000,
    "[" * 20000 + "]" * 20000,
    "{a: " * 500 + "1" + "}" * 500,
    "[" + ", ".join(map(str, range(3000))) + "]",
    "{" + ", ".join(f"k{i}: {i}" for i in range(2000)) + "}",
)
"""Where one value is expected, or other keys."""


def bomb() -> str:
    """Aliases that grow to 10**9 values."""
    text = "[&a0 [x, x, x, x, x, x, x, x, x, x]"
    for level in range(1, 9):
        text += f", &a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]"
    return text + "]"


def draw(rng: Random, *, hostile: float = 0.2) -> str:
    """Draws a value.

    Args:
        rng: The input's.
        hostile: The share of those that name code.
    """
    chance = rng.random()
    if chance < hostile:
        return rng.choice(HOSTILE)
    if chance < hostile + 0.02:
        return bomb()
    return rng.choice(SCALARS if chance < hostile + 0.6 * (1 - hostile) else GROUPS)


def shown(value: str) -> str:
    """A value in words: its beginning, and how long it is."""
    return value if len(value) <= 60 else f"{value[:40]}... ({len(value)} characters)"
