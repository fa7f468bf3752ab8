"""Images as feature networks take them: three channels, and a size of theirs."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

Resize = Callable[[Tensor], Tensor]
"""uint8 [N, 3, H, W] → float32 [N, 3, H', W'] in 0..255."""


def as_rgb(images: Tensor) -> Tensor:
    """Return images of one channel with that channel three times, others as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def resized(side: int) -> Resize:
    """Return clean-fid's bicubic resizing by Pillow, in floats, to squares of ``side`` pixels."""
    from cleanfid.resize import make_resizer

    with warnings.catch_warnings():  # making one silences the warnings of the whole process
        return each_resized(make_resizer("PIL", False, "bicubic", (side, side)))


def each_resized(resize_one: Callable[[np.ndarray], np.ndarray]) -> Resize:
    """Resize image after image, [H, W, 3] each."""

    def resize_to_tensor(image: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(resize_one(image).transpose(2, 0, 1)))

    def resize(images: Tensor) -> Tensor:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # Pillow lets go of the interpreter meanwhile
            return torch.stack(list(threads.map(resize_to_tensor, images.permute(0, 2, 3, 1).cpu().numpy())))

    return resize
