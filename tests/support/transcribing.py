"""A Transcriber on transformers' own Whisper, and what its ``generate`` writes."""

import numpy as np
import torch

from tfx.processing import AudioFeatures, AudioPreparation, Dictation
from tfx.runtime.speech.transcriber import Transcriber

from .speech import DE, EN, END, NO_TIMES, START, TRANSCRIBE, TRANSLATE, WHISPER_BINS

HEARING = AudioPreparation(
    "input_features", AudioFeatures.LOG_MEL, seconds=1, mel_bins=WHISPER_BINS
)
WRITING = Dictation(
    START,
    END,
    NO_TIMES,
    {"en": EN, "de": DE},
    {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
    (3, 7, START, EN, DE, TRANSLATE, TRANSCRIBE),
    (5, END),
    10,
    window=100,
)


class TorchScribe:
    """transformers' own model, run without a cache."""

    def __init__(self, model):
        self.model, self.positions, self.rows = model, model.config.max_target_positions, 3
        self.heard_rows = []

    def hear(self, features):
        assert features.dtype == np.float32
        assert features.shape[2] == 100
        with torch.no_grad():
            self.heard = self.model.model.encoder(torch.from_numpy(features))[0]
        self.heard_rows.append(len(features))

    def start(self, ids, windows):
        self.ids, self.windows = ids, list(windows)
        with torch.no_grad():
            given = self.model(
                encoder_outputs=(self.heard[self.windows],),
                decoder_input_ids=torch.from_numpy(ids),
            )
        return given.logits[:, -1].numpy()

    def step(self, tokens):
        return self.start(np.concatenate([self.ids, tokens[:, None]], axis=1), self.windows)


def transcriber(model, writing=WRITING):
    return Transcriber(TorchScribe(model), HEARING, writing, lambda ids: " ".join(map(str, ids)))


def features(rng, frames):
    # What changes slowly, so that windows differ.
    steps = rng.normal(size=(WHISPER_BINS, frames // 10 + 2))
    return np.repeat(steps, 10, axis=1)[:, :frames].astype(np.float32)


def generated(model, heard, **options):
    with torch.no_grad():
        found = model.generate(
            torch.from_numpy(heard[None]), return_segments=True, do_sample=False, **options
        )
    return found["segments"][0]


def same(ours, theirs):
    assert [list(one.tokens) for one in ours] == [one["tokens"].tolist() for one in theirs]
    np.testing.assert_allclose([one.start_s for one in ours], [float(o["start"]) for o in theirs])
    np.testing.assert_allclose([one.end_s for one in ours], [float(o["end"]) for o in theirs])
