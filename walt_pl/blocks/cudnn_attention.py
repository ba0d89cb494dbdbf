"""The switch that keeps cuDNN out of attention."""

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def disable_cudnn_attention() -> bool:
    """Keep cuDNN out of the process's attention. torch.compile runs this while it traces, before it chooses kernels.

    Call it before every module that reaches torch's fused attention: the denoiser, text encoders and extractors with a transformer.

    With a mask and 64 modulo 128 keys, cuDNN before 9.26 gives NaN in the backward pass (pytorch issue 196678); `text_to_video/sr1` has
    576 keys. The switch is the process's, and is set again at each call, because other libraries turn it. A kernel that changes after the
    first step would break exact resume. `sdpa_kernel` of torch is local, but inside a compiled block it keeps torch.compile from its cache
    on disk (pytorch issue 194007), costs 10 us a call, and one thread restores the choice in the middle of another.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    return True
