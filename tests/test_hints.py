"""Every error of ours says what to do: in its hint, or by what it expected."""

import ast
import importlib
import inspect
import textwrap

import pytest
from test_house import MODULES

from tfx import errors

# What makes an error of ours, besides the classes themselves.
MAKERS = {"bad_line", "TextError"} | {
    name
    for name, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, errors.TfxError)
}

# With which a hint begins; a new one joins them.
WORDS = """
    Add Allow Ask Bound Build Calibrate Call Change Check Choose Compare Compile Compute Convert
    Copy Cut Delete Detach Do Draw Drop End Export Feed Free Give Go Infer Inspect Install Keep
    Lead Leave Let Look Lower Make Mark Measure Merge Move Name Number Open Pass Pick Put Quantize
    Raise Read Reinstall Remove Rename Repeat Replace Report Return Run Save Say See Send Set
    Shorten Show Skip Split Start Stop Switch Take Test Train Try Tune Turn Unset Update
    Upgrade Use Wait Wrap Write
"""
VERBS = frozenset(WORDS.split())

# Names of what something else said, which a message passes on.
REASONS = {"error", "errors", "again", "problem", "problems", "reason", "last", "_last_words"}


def calls(name):
    """Calls in a module that make an error of ours, each with the function it is in, or None."""

    def below(node, function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name | ast.Attribute):
                called = child.func.id if isinstance(child.func, ast.Name) else child.func.attr
                if called in MAKERS:
                    yield child, function
            inner = child if isinstance(child, ast.FunctionDef) else function
            yield from below(child, inner)

    yield from below(ast.parse(MODULES[name].read_text()), None)


def hint_of(call):
    return next((one.value for one in call.keywords if one.arg == "hint"), None)


def texts_of(node, module, function=None, seen=frozenset()):
    """What a hint may be: constants and the literal beginnings of strings, each way it may go.

    A variable is all that its function sets it to, a function of ours all that it returns.
    """
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=[first, *_]):
            yield from texts_of(first, module, function, seen)
        case ast.FormattedValue(value=value):
            yield from texts_of(value, module, function, seen)
        case ast.BinOp(left=left):
            yield from texts_of(left, module, function, seen)
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts_of(body, module, function, seen)
            yield from texts_of(orelse, module, function, seen)
        case ast.Name(id=name) if name not in seen:
            if isinstance(text := getattr(module, name, None), str):
                yield text
            for value in values_of(name, function):
                yield from texts_of(value, module, function, seen | {name})
        case ast.Call(func=ast.Name(id=name)) if name not in seen:
            called = getattr(module, name, None)
            if inspect.isfunction(called) and called.__module__.startswith("tfx."):
                source = ast.parse(textwrap.dedent(inspect.getsource(called))).body[0]
                home = importlib.import_module(called.__module__)
                for one in ast.walk(source):
                    if isinstance(one, ast.Return):
                        yield from texts_of(one.value, home, source, seen | {name})


def values_of(name, function):
    """What a function sets its variable to."""
    for node in ast.walk(function) if function is not None else ():
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    match target, value:
                        case ast.Name(id=one), _ if one == name:
                            yield value
                        case ast.Tuple(elts=elts), ast.Tuple(elts=values):
                            pairs = zip(elts, values, strict=True)
                            yield from (v for e, v in pairs if ast.unparse(e) == name)
            case ast.NamedExpr(target=ast.Name(id=one), value=value) if one == name:
                yield value


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_hint_begins_with_a_verb(name):
    module = importlib.import_module(name)
    for call, function in calls(name):
        assert len(call.args) < 2 or call.func.id == "bad_line", ast.unparse(call)
        for text in texts_of(hint_of(call), module, function):
            assert not text.strip() or text.split()[0].strip(":") in VERBS, text
            assert not text.endswith(("!", ",")), text


@pytest.mark.parametrize(
    "lines",
    [
        "hint = 'Use a.' if x else 'wrong'",
        "hint, x = ('Use a.' if x else 'wrong'), 2",
        "if hint := ('Use a.' if x else 'wrong'): pass",
        "word = 'Use a.' if x else 'wrong'; hint = f'{word} b'",
        "hint = 'Use a.'; hint = 'wrong' + x; hint = hint + x",
    ],
)
def test_a_hint_in_a_variable_is_looked_at(lines):
    function = ast.parse(f"def made(x):\n    {lines}\n    raise TfxError(x, hint=hint)").body[0]
    assert [*texts_of(ast.Name("hint"), errors, function)] == ["Use a.", "wrong"]


def test_a_hint_that_a_function_gives_is_looked_at():
    call = ast.parse("install_hint('torch')").body[0].value
    found = [*texts_of(call, importlib.import_module("tfx.extras"))]
    assert found == ["Run: pip install '", "Run: pip install "]


def says_what_is_right(call):
    text = ast.unparse(call)
    if any(word in text for word in ("expected", "need ", "listing(")):
        return True
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
    return bool(names & REASONS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_an_error_says_what_to_do(name):
    silent = [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call, _ in calls(name)
        if hint_of(call) is None and not says_what_is_right(call)
    ]
    assert not silent, "\n".join(silent)
