"""Profiles as text for the screen."""

from __future__ import annotations

from prune_export.profiles.host import host_fingerprint, mismatch
from prune_export.profiles.load import HOST, list_profiles, load_profile
from prune_export.profiles.write import to_toml


def profile_list() -> str:
    """Every profile, a line each; the ones that stand for this machine are marked."""
    fingerprint = host_fingerprint()
    profiles = [load_profile(name) for name in list_profiles()]
    width = max(len(profile.name) for profile in profiles)
    lines = []
    for name, profile in zip(list_profiles(), profiles, strict=True):
        here = "this machine" if name == HOST or not mismatch(profile, fingerprint) else ""
        lines.append(f"{name.ljust(width)}  {here.ljust(12)}  {profile.description}")
    return "\n".join(lines)


def profile_text(name: str) -> str:
    """One profile as TOML, and whether this machine is what it stands for.

    Raises:
        BadInputError: as `load_profile`.
    """
    profile = load_profile(name)
    reason = mismatch(profile, host_fingerprint())
    verdict = f"predicted here: {reason}" if reason else "measured here: this machine is what it stands for"
    return f"# {verdict}\n{to_toml(profile).rstrip()}"
