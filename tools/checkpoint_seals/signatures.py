"""Sign checkpoint folders with the OpenSSF's model-signing package and an elliptic-curve key pair (optional).

    pip install model-signing pyopenssl      # model-signing 1.1.1 does not declare its dependency pyopenssl
    openssl ecparam -genkey -name prime256v1 -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub
    python tools/checkpoint.py seal folder --sign_key key.pem
    python tools/checkpoint.py verify folder --public_key key.pub

The signature covers every file including the seal. Any tool that reads model-signing bundles can verify it.
"""

from pathlib import Path
from typing import Any

from checkpoint_seals.seal_check import SIGNATURE


def require_package() -> Any:
    """Return the module model_signing; ValueError if it is not installed."""
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError:
        raise ValueError(
            "signatures need model-signing, which is not installed: pip install model-signing pyopenssl"
        ) from None
    return model_signing


def hashing(folder: Path) -> Any:
    """Return a hashing configuration for every file except the signature itself and hidden files."""
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return require_package().hashing.Config().set_ignored_paths(paths=[SIGNATURE, *hidden])  # relative to the folder


def remove(folder: Path) -> None:
    (folder / SIGNATURE).unlink(missing_ok=True)


def sign(folder: Path, key: str) -> Path:
    """Write model.sig into a sealed folder and return its path; ValueError if the key cannot be used."""
    signer = require_package().signing.Config().set_hashing_config(hashing(folder))
    try:
        signer.use_elliptic_key_signer(private_key=Path(str(key))).sign(folder, folder / SIGNATURE)
    except (ValueError, OSError, TypeError) as error:
        remove(folder)
        raise ValueError(f"{key} cannot sign ({error}); give an elliptic-curve private key in PEM form") from None
    return folder / SIGNATURE


def verify(folder: Path, key: str) -> None:
    """Verify the signature; FileNotFoundError if it is missing, ValueError if it does not match key and files."""
    if not (folder / SIGNATURE).is_file():
        raise FileNotFoundError(f"{folder} has no {SIGNATURE}; sign the original: seal --sign_key key.pem")
    verifier = require_package().verifying.Config().set_hashing_config(hashing(folder))
    try:
        verifier.use_elliptic_key_verifier(public_key=Path(str(key))).verify(folder, folder / SIGNATURE)
    except Exception as error:  # the package documents no narrower exception types
        raise ValueError(
            f"{folder}: the signature is not valid for {key} ({str(error)[:160]}); do not use it"
        ) from None
