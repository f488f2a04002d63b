from tfx.errors import TfxError


def test_a_hint_follows_its_message_in_brackets():
    assert TfxError("it is gone", hint="Make it again.").with_hint == "it is gone (Make it again.)"
    assert TfxError("it is gone").with_hint == "it is gone"
