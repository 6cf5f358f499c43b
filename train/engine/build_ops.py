"""Builds, once, the small C++ operator that DeepSpeed needs to run on a CPU; nothing to do on a GPU machine."""

from deepspeed.accelerator import get_accelerator


def main() -> None:
    """Compiles DeepSpeed's shared-memory communication operator into torch's extension cache."""
    if get_accelerator().device_name() != "cpu":
        return
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    builder.load(verbose=False)
    print("built DeepSpeed's CPU operator")


if __name__ == "__main__":
    main()
