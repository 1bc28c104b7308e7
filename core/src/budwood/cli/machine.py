"""doctor: is this machine fit?"""

from __future__ import annotations

from dataclasses import asdict

import click

from budwood.cli.output import Answer, say


@click.command()
def doctor() -> Answer:
    """Python, packages, plugins, devices, disk and tracker: what is there, and what is wrong. Exit code 1 on errors.

    \b
      budwood doctor
    """
    from budwood import machine

    findings = machine.doctor()
    for finding in findings:
        say(f"{finding.level:5}  {finding.topic:10}  {finding.what}" + (f"  -> {finding.do}" if finding.do else ""))
    data = [asdict(finding) for finding in findings]
    return Answer(data, 1 if any(f.level == "error" for f in findings) else 0)
