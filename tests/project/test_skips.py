"""The last line of `make test` where programs are missing."""

import skips_for_tests
from skips_for_tests import PROGRAMS, install_line


def test_the_packages_of_missing_programs_are_named_once(monkeypatch):
    monkeypatch.setattr(skips_for_tests.shutil, "which", lambda *_, **__: None)
    lab = "('tests/conftest.py', 45, 'Skipped: no machines to test with: ip, ssh is not installed')"
    page = "('tests/support/chromium_for_tests.py', 27, 'Skipped: no Chromium is installed')"
    assert install_line([lab, lab, page, "Skipped: needs a CUDA device"]) == (
        "to run 3 skipped tests too: apt-get install chromium iproute2 openssh-client"
        " openssh-server"
    )


def test_other_reasons_need_no_installation():
    assert (
        install_line(["Skipped: needs a CUDA device", "no machines to test with: only root"]) == ""
    )


def test_what_a_lab_of_machines_needs_is_installed_by_the_ci():
    from machines_for_tests import TOOLS

    known = {line.split()[0] for line in PROGRAMS.read_text().splitlines()}
    assert {*TOOLS, "sshd", "chromium"} <= known
