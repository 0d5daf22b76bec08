"""A local web page over the command line: look at scans, run jobs, correct labels.

The user starts `tfmuscle gui FOLDER` and works on that folder, the *workspace*, in a browser on the same machine. The
page shows a scan with its labels in three planes and in 3D; each button that computes runs a `tfmuscle` command, so
that the page, a script and a notebook give the same files.

What the page makes lies in `results/` of the workspace; what the server keeps for itself, in `.tfmuscle/`. Nothing
else is written, and nothing is written over: corrections of `leg.nii.gz` become `results/labels/leg_corrected.nii.gz`.

    workspace.py   what is in the folder, and which names from the page are allowed
    volumes.py     any scan, any labels, as a NIfTI file that the page loads
    edits.py       drawn labels that come back
    commands.py    which commands the page may run, and their arguments, checked
    jobs.py        the queue of commands, kept in files; worker.py is the process that runs one
    guard.py       who may ask at all
    app.py         the addresses
    static/        the page: plain JavaScript and NiiVue

Rejected: a framework that draws the page from Python (50 packages, and no drawing on slices); jobs as threads of the
server (they end with it, and share its memory with TensorFlow); a build step for the page.
"""
