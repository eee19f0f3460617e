"""SHA-256 by Python's own code: hashlib takes OpenSSL's, a library of 4 MB in every process for a few names."""

try:
    from _sha2 import sha256
except ImportError:
    try:
        from _sha256 import sha256  # before Python 3.12
    except ImportError:
        from hashlib import sha256

__all__ = ["sha256"]
