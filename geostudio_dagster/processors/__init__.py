"""Users' own Python scripts: checked when they come, run as if hostile, their files judged.

What the rest of the platform calls:

- ``script.check_script(name, content, limits=...)`` -> ``ValidationReport``: may it be registered,
  which contract does it speak, what does it import and declare.
- ``contract.check_parameters(contract, parameters)`` when a request comes, and
  ``contract.command_line(contract, script, input, output, parameters, options=...)``.
- ``sandbox.choose_sandbox(settings.processors)`` -> ``Sandbox`` (``bubblewrap`` or ``rlimits``);
  raises ``Unavailable`` where the wanted isolation does not work.
- ``run.run_script(job, limits, sandbox, cancelled=...)`` -> ``ScriptResult``; a failed script is a
  result, ``result.raise_if_failed()`` makes a ``TaskError`` of it.
- ``outputs.collect(folder, input_raster, target, limits, sandbox)`` -> ``list[CollectedOutput]``.
- ``joining.join_isolated(files, target, layer_name, ...)`` joins vector files in one GeoPackage.
- ``dependencies.ensure_packages(requirements, root, settings)`` -> folder of what it declares.

No module here imports Dagster, SQLAlchemy or the catalog.
"""
