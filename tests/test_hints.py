"""Every error of ours says what to do: in its hint, or by what it expected."""

import ast
import importlib
import inspect

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
    Add Allow Ask Bound Build Calibrate Call Change Check Choose Compare Compile Convert Copy
    Cut Delete Detach Do Draw Drop End Export Feed Free Give Go Infer Inspect Install Keep
    Lead Leave Look Lower Make Mark Measure Merge Move Name Number Open Pass Pick Put Quantize
    Raise Read Reinstall Remove Rename Repeat Replace Report Return Run Save Say See Send Set
    Shorten Show Skip Split Start Stop Switch Take Test Train Try Tune Turn Unset Update
    Upgrade Use Wait Wrap Write
"""
VERBS = frozenset(WORDS.split())

# Names of what something else said, which a message passes on.
REASONS = {"error", "errors", "again", "problem", "problems", "reason", "last", "_last_words"}


def calls(name):
    """Calls in a module that make an error of ours."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in MAKERS:
                yield node


def hint_of(call):
    return next((one.value for one in call.keywords if one.arg == "hint"), None)


def texts_of(node, module):
    """What a hint may be: constants and the literal beginnings of strings, each way it may go."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            yield text
        case ast.BinOp(left=left):
            yield from texts_of(left, module)
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts_of(body, module)
            yield from texts_of(orelse, module)
        case ast.Name(id=name) if isinstance(text := getattr(module, name, None), str):
            yield text


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_hint_begins_with_a_verb(name):
    module = importlib.import_module(name)
    for call in calls(name):
        assert len(call.args) < 2 or call.func.id == "bad_line", ast.unparse(call)
        for text in texts_of(hint_of(call), module):
            assert not text or text.split()[0].strip(":") in VERBS, text
            assert not text.endswith(("!", ",")), text


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
        for call in calls(name)
        if hint_of(call) is None and not says_what_is_right(call)
    ]
    assert not silent, "\n".join(silent)
