"""From a run folder to an exported model with its proof of parity."""

from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.core.files import atomic_path, read_json, sha256_file, write_json
from fewlabel.data.split import Split
from fewlabel.deploy.export import export_student
from fewlabel.deploy.verify import ParityReport, verify
from fewlabel.deploy.verify_boxes import BoxParityReport, verify_boxes
from fewlabel.pipeline.boxes import THRESHOLD_FILE
from fewlabel.pipeline.collect import spread
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.inputs import open_dataset
from fewlabel.pipeline.scoring import load_threshold
from fewlabel.pipeline.trained import load_student, run_recipe, student_folder
from fewlabel.students.detector.network import Detector
from fewlabel.training.loop import WEIGHTS


def export_run(run: Path, out: Path, *, method: str = "fewlabel", images: int = 16) -> ParityReport | BoxParityReport:
    """Write a run's student as ONNX and compare it with the network on real images.

    Args:
        run: Run folder whose train stage is done.
        out: The ONNX file; `NAME.parity.json` is written beside it.
        method: Which of the run's students.
        images: Number of images for the comparison, from the test list, or from the training images without one.

    Returns:
        What the comparison measured.

    Raises:
        DataError: `run` is not a run folder.
        RunError: The run holds no such student.
        ExportError: The exported model gives other masks, logits or boxes; an earlier file stays as it was.
    """
    folder = RunFolder(run)
    recipe = run_recipe(folder, method)
    student = load_student(recipe, folder, method)
    weights = student_folder(folder, method) / WEIGHTS
    split = Split.load(folder.stage("split") / "split.json")
    dataset = open_dataset(recipe.data)
    chosen = spread(split.test or split.train, images)
    if not chosen:
        raise DataError(f"{recipe.data.root} has no image to compare the export on; add a test list.")
    metadata = {
        "student": recipe.student.network,
        "method": method,
        "threshold": load_threshold(student, folder, method),
        "classes": ["target"],
        "weights_file_sha256": sha256_file(weights),
        "data": dataset.name,
        "radiometry": recipe.data.radiometry,
    }
    if isinstance(student, Detector):
        metadata["threshold_chosen"] = read_json(student_folder(folder, method) / THRESHOLD_FILE)
    proof = out.with_suffix(".parity.json")
    with atomic_path(out) as unproven:
        export_student(student, unproven, name=recipe.name, metadata=metadata)
        planes = [dataset.image(id).normalised() for id in chosen]
        report: ParityReport | BoxParityReport
        if isinstance(student, Detector):
            report = verify_boxes(unproven, student, planes)
        else:
            report = verify(unproven, student, planes)
        proof.unlink(missing_ok=True)  # it speaks of the file that is about to be replaced
    write_json(proof, report.to_json())
    print(f"{out}: {report.summary()}")
    return report
