"""The group `train`: its commands, each a function of one request, imported only when it runs."""

from s3diff_runtime.command_line import LazyGroup, Member

train = LazyGroup(
    {
        "base": Member(
            "s3diff_training.train.commands:base",
            "A small VAE and UNet from scratch, for people without SD-Turbo.",
        ),
        "estimator": Member(
            "s3diff_training.train.commands:estimator", "The network that reads noise and blur off an image."
        ),
        "lora": Member(
            "s3diff_training.train.commands:lora",
            "LoRA, modulation and the UNet's first convolution, as the paper does.",
        ),
    },
    name="train",
    help="""Train LoRA, the degradation estimator, or a small base model.

    Each takes DATA, a folder of photographs of high resolution, and degrades them itself. On several GPUs:

    \b
      accelerate launch "$(which s3diff-export)" train lora ...
    """,
)
