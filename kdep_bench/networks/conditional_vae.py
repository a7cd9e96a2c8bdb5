"""A small conditional variational autoencoder of images, with a class as condition."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (32, 64, 128, 256, 512)  # of the convolutions of stride 2
STRIDE = 2 ** len(CHANNELS)  # an image side must be a multiple of it


class ConditionalVAE(nn.Module):
    """q(z | x, c) and p(x | z, c) of images x in [0, 1] and a class c, encoded as one-hot.

    As in the source, the encoder reads the class as a fourth plane of the image, a linear function
    of the one-hot vector; the decoder reads the one-hot vector together with z. Source:
    nphdang/FS-BBT `cifar10/cvae.py`. One departure: the last layer of the decoder is a transposed
    convolution. In the source it is a dense layer that reads a larger image, and would have more
    weights than all other layers together.

    Args:
        classes: number of classes.
        px: height and width of the images, a multiple of STRIDE.
        latent: channels of z.
    """

    def __init__(self, classes: int, px: int = 32, latent: int = 2) -> None:
        super().__init__()
        self.classes, self.px, self.latent = classes, px, latent
        self.side = px // STRIDE
        self.plane = nn.Linear(classes, px * px)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise((4, *CHANNELS))
        )
        flat = CHANNELS[-1] * self.side**2
        self.encode_dense = nn.Sequential(
            nn.Linear(flat, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()
        )
        self.mean, self.log_variance = nn.Linear(16, latent), nn.Linear(16, latent)
        self.decode_dense = nn.Sequential(
            nn.Linear(latent + classes, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(),
            nn.Linear(32, flat),
        )  # fmt: skip
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise((*CHANNELS[::-1], 3))
        )

    def encode(self, x_B3HW: Tensor, condition_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | x, c), [B, latent] each."""
        plane = self.plane(condition_BC).view(-1, 1, self.px, self.px)
        x = torch.cat([x_B3HW, plane], 1)
        for layer in self.down:
            x = F.relu(layer(x))
        x = self.encode_dense(x.flatten(1))
        return self.mean(x), self.log_variance(x)

    def decode_logits(self, z_BL: Tensor, condition_BC: Tensor) -> Tensor:
        """Logits of the pixels, [B, 3, px, px]."""
        x = self.decode_dense(torch.cat([z_BL, condition_BC], 1))
        x = x.view(-1, CHANNELS[-1], self.side, self.side)
        for k, layer in enumerate(self.up):
            x = layer(x if k == 0 else F.relu(x))
        return x

    def decode(self, z_BL: Tensor, condition_BC: Tensor) -> Tensor:
        """Images [B, 3, px, px] in [0, 1]."""
        return self.decode_logits(z_BL, condition_BC).sigmoid()

    def loss(self, x_B3HW: Tensor, condition_BC: Tensor, noise_BL: Tensor) -> Tensor:
        """[B]: sum over pixels of the binary cross-entropy + KL(q(z | x, c) || N(0, 1)).

        Args:
            x_B3HW: images in [0, 1].
            condition_BC: one-hot classes.
            noise_BL: standard normal numbers, for z = mean + noise * standard deviation.
        """
        mean, log_variance = self.encode(x_B3HW, condition_BC)
        z = mean + noise_BL * (log_variance / 2).exp()
        logits = self.decode_logits(z, condition_BC)
        pixel_loss = F.binary_cross_entropy_with_logits(logits, x_B3HW, reduction="none")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return pixel_loss.flatten(1).sum(1) + kl.sum(1)
