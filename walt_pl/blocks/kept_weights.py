"""Tensors made from a frozen weight, such as a cast or a sum, kept from one pass to the next."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class KeptWeights:
    """Tensors made from one weight. They are made anew where the weight has changed.

    Only weights without a gradient are kept. Fused optimisers, DeepSpeed's, and swaps with an average write a trained weight so that
    torch's version counter does not move. The owner therefore clears this whenever the weight trains. A copy of the object, by
    `deepcopy` or `pickle`, is empty.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Hashable, Tensor]] = {}

    def get(self, weight: Tensor, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `make(weight)`, computed once as long as the weight stays the same.

        Args:
            weight: parameter of a module.
            name: of the result; each name has one `make`.
            make: function of the weight alone.
        """
        if weight.requires_grad or weight.is_meta or weight.is_inference() or torch.compiler.is_compiling():
            return make(weight)
        # A weak reference to the storage: an address alone could be that of a freed weight.
        state = (StorageWeakRef(weight.untyped_storage()), weight.storage_offset(), weight.dtype, weight._version)
        kept = self._kept.get(name)
        if kept is None or kept[0] != state:
            # Made in inference mode, it could not be used in a pass with gradients of the input.
            with torch.inference_mode(False), torch.no_grad():
                kept = state, make(weight)
            self._kept[name] = kept
        return kept[1]

    def clear(self) -> None:
        """Free what is kept."""
        self._kept.clear()

    def __reduce__(self) -> tuple[type["KeptWeights"], tuple[()]]:
        return KeptWeights, ()
