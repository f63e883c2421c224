import pytest

from ccr_lightning.data.cache import default_cache_dir
from ccr_lightning.errors import CCRError


def test_cache_dir(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "chosen"))
    assert default_cache_dir() == tmp_path / "chosen"
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(CCRError, match="cannot be written"):
        default_cache_dir()
    monkeypatch.delenv("CCR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "ccr-lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "ccr-lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="set CCR_CACHE_DIR"):
        assert default_cache_dir().parent == tmp_path
    fallback = default_cache_dir()  # of which it warns once
    assert fallback.stat().st_mode & 0o777 == 0o700
    fallback.rename(tmp_path / "of somebody else")
    fallback.symlink_to(tmp_path / "of somebody else")
    with pytest.raises(CCRError, match=r"belongs to somebody else; set CCR_CACHE_DIR\.$"):
        default_cache_dir()
