"""What `tfx inspect` says of a bundle that hears."""

import dataclasses

import pytest
from click.testing import CliRunner
from support.bundles import write_bundle

from tfx.cli import main
from tfx.processing import AudioFeatures, AudioPreparation, Processing


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (AudioPreparation(normalize=True), "16,000 samples a second, normalized"),
        (
            AudioPreparation(features=AudioFeatures.LOG_MEL, rate=8000),
            "8,000 samples a second, 80 log-mel bands of 30 s",
        ),
    ],
    ids=["samples", "features"],
)
def test_how_sound_goes_in(audio, said, tmp_path):
    write_bundle(tmp_path / "hears", processing=dataclasses.replace(Processing(), audio=audio))
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "hears"), "--no-graph"])
    assert done.exit_code == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("sound"))
    assert line.split(maxsplit=1)[1] == said
