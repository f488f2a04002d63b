"""The program of docs/cpp.md compiles, and reads a graph by its names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.graphs import graph_of

TEXT = (Path(__file__).parents[1] / "docs" / "cpp.md").read_text()
FILES = re.compile(r"<!-- save as (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_program_of_the_page(tmp_path):
    pytest.importorskip("openvino")
    ir = pytest.importorskip("onnx_ir")
    (tmp_path / "minilm").mkdir()
    # The first number is that of the first token: 101 + 10 * 1 + 0.
    model = graph_of(
        """g (int64[b, s] input_ids, int64[b, s] attention_mask, int64[b, s] token_type_ids)
        => (float[b, s, d] last_hidden_state) <int64[1] last = {-1}, int64 ten = {10}> {
          masks = Mul(attention_mask, ten)
          some = Add(input_ids, masks)
          sum = Add(some, token_type_ids)
          column = Unsqueeze(sum, last)
          last_hidden_state = Cast<to = 1>(column)
        }"""
    )
    ir.save(model, tmp_path / "minilm" / "model.onnx")
    for name, text in FILES.findall(TEXT):
        (tmp_path / name).write_text(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(COMMANDS.findall(TEXT))],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[2,5,1] 111"
