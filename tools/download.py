"""Download a published checkpoint, or any other repository, from the Hugging Face hub or a mirror.

    python tools/download.py list
    python tools/download.py --download_path checkpoints/diff --only_base --fp16
    python tools/download.py --download_path checkpoints/lora --only_lora
    python tools/download.py --download_path checkpoints --both
    python tools/download.py --download_path checkpoints/other --specify --repo_name OWNER/NAME --revision main \\
        --pattern "*.safetensors,*.json" --exclude "*fp32*" --endpoint https://MIRROR

Files are downloaded to the folder DOWNLOAD_PATH.partial and compared with the size and hash that the hub publishes. The
folder is renamed when all files are correct. The same command resumes an interrupted download, even within a file. In a
finished folder it restores missing and damaged files of the commit in .download/note.json, even if the hub has a newer
commit; the note must name the same repository, and the same revision or commit. Other folders are not changed. Mirrors,
tokens and proxies are set by environment variables of the hub client: HF_ENDPOINT=https://… HF_TOKEN=… HTTPS_PROXY=… If
the endpoint does not have the hub's API, the API of ModelScope is tried (--endpoint https://www.modelscope.cn
--repo_name ZJUNLP/NAME).
"""

from command_line.fire_commands import run

import os
import sys
from pathlib import Path

from hub_download.model_registry import registry
from hub_download.repository_download import download
from hub_download.repository_source import RepositorySource, resolve_endpoint

PUBLISHED = {  # the 13B models: the base as a diff from LLaMA-13B, and the LoRA adapter of the recovered base
    "base": "zjunlp/zhixi-13b-diff",
    "base fp16": "zjunlp/zhixi-13b-diff-fp16",
    "lora": "zjunlp/zhixi-13b-lora",
}
KINDS = ("model", "dataset", "space")
NOT_TUNED = "none: not instruction-tuned"


def main(
    download_path: str,
    only_base: bool = False,
    only_lora: bool = False,
    both: bool = False,
    specify: bool = False,
    fp16: bool = False,
    repo_name: str = "",
    repo_type: str = "model",
    revision: str = "",
    pattern: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    endpoint: str = "",
) -> None:
    """Download the published diff, the adapter, both (to subfolders of download_path), or any repository.

    Args:
        download_path: a new folder, or one that this command created; with both, the parent of the two folders.
        only_base: the published diff from LLaMA-13B to the 13B base.
        only_lora: the published LoRA adapter.
        both: the diff and the adapter.
        specify: download the repository repo_name.
        fp16: the diff in float16 instead of float32.
        repo_name: OWNER/NAME on the hub.
        repo_type: model, dataset or space.
        revision: a branch, tag or commit; the hub's main branch by default.
        pattern: files to download, such as "*.safetensors,*.json"; * also matches /; an unmatched pattern is an error.
        exclude: files not to download, in the same notation.
        endpoint: address of a hub or mirror; HF_ENDPOINT or the public hub by default.
    """
    if [only_base, only_lora, both, specify].count(True) != 1:
        raise ValueError("choose what to download: exactly one of --only_base, --only_lora, --both and --specify")
    if fp16 and not (only_base or both):
        raise ValueError("--fp16 selects the float16 diff; use it with --only_base or --both")
    if bool(repo_name) != specify:
        raise ValueError("--specify and --repo_name OWNER/NAME must be used together")
    if repo_type not in KINDS:
        raise ValueError(f"--repo_type {repo_type} is unknown; use one of {', '.join(KINDS)}")
    if repo_type != "model" and not specify:
        raise ValueError(f"--repo_type {repo_type} needs --specify; the published base and adapter are models")
    address = resolve_endpoint(endpoint)
    target, base, lora = Path(download_path), PUBLISHED["base fp16" if fp16 else "base"], PUBLISHED["lora"]
    choices = [(repo_name if specify else base if only_base else lora, target)]
    if both:
        choices = [(repo, target / repo.split("/")[1]) for repo in (base, lora)]
    for repo, folder in choices:
        print(download(RepositorySource(repo, repo_type, revision, address, pattern, exclude), folder), flush=True)


def list_published() -> None:
    """Print the published models and data sets with content, licence, size, prompt template (models) and sources."""
    for title, key in (("Models", "repositories"), ("Data sets (--repo_type dataset)", "datasets")):
        print(f"{title}:")
        for name, entry in registry()[key].items():
            page = entry.get("facts", entry["source"])
            shown = ("licence", "size", "template") if key == "repositories" else ("licence", "size")
            stated = [f"{fact} {entry.get(fact, f'not stated in {page}') or NOT_TUNED}" for fact in shown]
            print(f"  {name}\n      {entry['what']}\n      {'; '.join(stated)}")
            print(f"      from {'; '.join(dict.fromkeys([entry['source'], page]))}")
    print("Download: python tools/download.py --specify --repo_name OWNER/NAME --download_path FOLDER")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # it contacts the public hub, whatever the endpoint
    run({"list": list_published} if sys.argv[1:2] == ["list"] else main)
