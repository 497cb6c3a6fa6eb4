"""torchvision beside a CPU build of torch, in processes of their own: an import happens once."""

import subprocess
import sys
import textwrap

import pytest

# A torchvision whose operators were built for another torch: it looks nms up when imported, as the real one does
FAKE = """
    import torch

    torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "Meta")
"""


def run(code, tmp_path, fake=None):
    if fake is not None:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(textwrap.dedent(fake))
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_timm_can_be_imported(tmp_path):
    code = """
        from edge_ad.methods.parts.torchvision_import import import_torchvision
        import_torchvision()
        import_torchvision()
        import timm, torchvision
        from torchvision.transforms import InterpolationMode
    """
    process = run(code, tmp_path)
    assert process.returncode == 0, process.stderr


def test_missing_operators_are_declared(tmp_path):
    code = """
        try:
            import torchvision
        except RuntimeError as error:
            assert "operator torchvision::nms does not exist" in str(error)
        else:
            raise SystemExit("the fake imports by itself: it proves nothing")
        from edge_ad.methods.parts.torchvision_import import import_torchvision
        import_torchvision()
        import torchvision, torch
        torch.ops.torchvision.nms, torch.ops.torchvision.qnms
    """
    process = run(code, tmp_path, FAKE)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("error", ["RuntimeError('libcuda is broken')", "ImportError('no torchvision here')"])
def test_other_errors_are_not_swallowed(tmp_path, error):
    code = "from edge_ad.methods.parts.torchvision_import import import_torchvision\nimport_torchvision()"
    process = run(code, tmp_path, f"raise {error}")
    assert process.returncode != 0
    assert error.split("'")[1] in process.stderr.splitlines()[-1]
