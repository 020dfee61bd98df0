"""Download models from the Hugging Face hub, through its own client."""

from pathlib import Path

from ..errors import CheckpointError, log

PREFIX = "hf-hub:"
_FILES = ("*.json", "*.safetensors", "*.npz")


def split_name(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision (None: the newest) in "hf-hub:OWNER/NAME@REVISION"."""
    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    if not repository or (at and not revision):
        raise CheckpointError(f"{name!r} is no name of the hub; write {PREFIX}OWNER/NAME, or that with @REVISION")
    return repository, revision or None


def downloaded(name: str) -> Path:
    """Return the local folder of a model of the hub, which is downloaded unless it is in the hub's cache.

    Without a network, and with HF_HUB_OFFLINE=1, the cache alone is used. The name of the returned folder is the
    commit that was found, see `pinned`.

    Raises
    ------
    CheckpointError
        If the client is not installed, there is no such model, or it can neither be downloaded nor found in the cache.
    """
    repository, revision = split_name(name)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f'{name} needs the package huggingface_hub ({error}); install it with `pip install "tinyvit[hub]"`, or '
            "download the folder and give its path"
        ) from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # the client raises errors of many kinds: of the network, the hub, the disk
        first_line = str(error).strip().partition("\n")[0]
        try:
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=list(_FILES), local_files_only=True)
            )
        except Exception:
            raise CheckpointError(
                f"{name} cannot be downloaded ({type(error).__name__}: {first_line}), and is not in the cache"
            ) from error
        log.warning("%s cannot be downloaded (%s); the copy in the cache is used", name, first_line)
        return folder


def pinned(name: str, folder: Path) -> str:
    """Return the name with the revision that `folder`, from `downloaded`, holds."""
    return f"{PREFIX}{split_name(name)[0]}@{folder.name}"
