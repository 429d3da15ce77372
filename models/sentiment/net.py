"""The sentiment network: embedding, one LSTM read left to right, and what it felt most strongly so far.

    words (T, N) -> embedding (T, N, I) -> LSTM -> y (T, N, H)
    peak = running maximum of y over time, starting at -1        (N, H)
    logits = head([peak, y at the last timestep])                (N, 2)

The last hidden state alone forgets a verdict given 200 words ago; the running maximum keeps it, costs one
more state of size H, and streams: the maximum of a text is the maximum of the maxima of its pieces, exactly.

T time, N batch, I embedding_size, H hidden_size, V vocabulary rows, K noise words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from models.sentiment.config import Config

PEAK_INITIAL = -1.0
"""Below every hidden value (a product of a sigmoid and a tanh), so it never survives the first word."""


class SentimentNet(nn.Module):
    """Many to one; ``forward`` is one chunk with explicit state (exported), ``hidden`` whole texts (training)."""

    def __init__(self, config: Config, vocabulary_rows: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary_rows, config.embedding_size)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size)
        self.head = nn.Linear(2 * config.hidden_size, 2)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            # An open forget gate at the start lets the gradient reach early words (Jozefowicz et al. 2015);
            # torch keeps the gates in the order i, f, g, o.
            bias: Tensor = self.lstm.bias_ih_l0  # pyright: ignore[reportAssignmentType] - a parameter made by name
            bias[config.hidden_size : 2 * config.hidden_size] = 1.0

    def forward(
        self, words: Tensor, lengths: Tensor, h: Tensor, c: Tensor, peak: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One chunk: words (T, N), lengths (N,), h, c and peak (1, N, H) -> logits (N, 2), new h, c, peak.

        In torch every length must be T. The exported graph takes shorter rows too: there ``lengths`` is wired
        into the LSTM, which then returns h and c of each row's true end (models/common/export.py).
        """
        y, (h, c) = self.lstm(self.embedding(words), (h, c))  # y (T, N, H)
        time = torch.arange(words.shape[0], device=words.device, dtype=lengths.dtype)
        real = (time[:, None] < lengths[None, :])[..., None]  # (T, N, 1)
        highest = torch.where(real, y, PEAK_INITIAL).amax(0, keepdim=True)
        peak = torch.maximum(peak, highest)
        # As a Gemm of ONNX Runtime 1.32 on x86-64 this gave each row the same bytes for every N from 1 to 64;
        # tests/parity asserts it of the shipped file. A maximum over time is exact in any order.
        return self.head(torch.cat([peak[0], h[0]], dim=-1)), h, c, peak

    def hidden(self, words: Tensor) -> Tensor:
        """Hidden states y (T, N, H) of whole texts words (T, N), with dropout of words and of features."""
        config = self.config
        x = self.embedding(words)  # (T, N, I)
        if self.training:
            kept = torch.rand(words.shape, device=words.device) >= config.word_dropout
            x = functional.dropout(x * kept[..., None], config.embedding_dropout)
        return self.lstm(x)[0]

    def logits_at(self, y: Tensor, ends: Tensor) -> Tensor:
        """Logits (K, N, 2) of the first ``ends`` (K, N) words of each text, from its hidden states y (T, N, H)."""
        last = (ends - 1)[..., None].expand(-1, -1, y.shape[2])  # (K, N, H)
        peak = y.cummax(0).values.gather(0, last)
        seen = functional.dropout(torch.cat([peak, y.gather(0, last)], dim=-1), self.config.head_dropout, self.training)
        return self.head(seen)


class LanguageHead(nn.Module):
    """Next-word scores from hidden states, for pre-training; the output words are the input embedding.

    Scoring all V words costs more than the LSTM, so the sum over them in the softmax is estimated from K noise
    words that all positions of a batch share: drawn by frequency with replacement, each counted 1 / (K q) times
    (importance sampling, Bengio & Senecal 2003; Jean et al. 2015, section 3). The word that did come is counted
    by itself, so a noise word equal to it is left out; the estimate of the sum has no bias.
    """

    frequency: Tensor

    def __init__(self, config: Config, frequency: Tensor) -> None:
        super().__init__()
        self.noise_words = config.noise_words
        self.project = nn.Linear(config.hidden_size, config.embedding_size)
        self.bias = nn.Parameter(torch.zeros(len(frequency)))
        self.register_buffer("frequency", frequency)  # q, (V,)

    def loss(self, embedding: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood (M,) of targets (M,) given y (M, H) and the embedding (V, I), in nats."""
        x = self.project(y)  # (M, I)
        noise = torch.multinomial(self.frequency, self.noise_words, replacement=True)  # (K,)
        weight = torch.log(self.frequency[noise] * self.noise_words)  # (K,)
        # functional.embedding, not indexing: its gradient is several times faster on the CPU.
        against = torch.addmm(self.bias[noise] - weight, x, functional.embedding(noise, embedding).T)  # (M, K)
        against = against.masked_fill(noise[None, :] == targets[:, None], -1e9)
        score = (x * functional.embedding(targets, embedding)).sum(-1)  # (M,)
        score = score + functional.embedding(targets, self.bias[:, None])[:, 0]
        return torch.logaddexp(score, against.logsumexp(-1)) - score
