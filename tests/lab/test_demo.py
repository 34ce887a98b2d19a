from scumble.lab.demo import _numbered


def test_each_demo_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(_numbered()) == "demo-001"
    (tmp_path / "demo-001").mkdir()
    (tmp_path / "demo-002").mkdir()
    assert str(_numbered()) == "demo-003"
