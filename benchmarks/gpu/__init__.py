"""All that only a GPU can show, measured in parts.

    python -m benchmarks.gpu [--part NAME ...] [--quick] [--out DIR] [--again] [--list]

Every file of benchmarks/gpu/parts/ is a part. Each part runs in a process of its own and has at most 120 seconds. A crash, a hang or a
lack of memory costs that part alone, and the rows that it had measured are kept. All parts of one call have 12 minutes; the next call goes
on with the parts that are not done. `--again` measures them again. Finished parts are kept for one commit, one torch and one card. Where
files are not committed, a hash of the sources stands for them. `--quick` runs the code with tiny sizes on the CPU, and its figures mean
nothing. No part needs a network; a part names each optional package that it lacks, and skips what needs it.

A call writes DIR/CARD_DATE.json and, rendered from it, DIR/CARD_DATE.md. DIR is benchmarks/results unless `--out` names another. The JSON:

    format  1
    facts   card, memory_gb, torch, cuda, driver, triton, python, commit, date, quick,
            sources (hash, unless committed), note ("" or a remark above the report)
    parts   NAME -> purpose  docstring of the part when it ran
                    state    "done"; "failed" (a row failed, or the process ended with an error), or "timeout"
                    seconds  of the whole process
                    rows     a list of {"row": name, FIGURE: number or text, ...}
                    skipped  name of a row -> package or device that is missing
                    failed   name of a row -> its error
                    error    last lines of the output of a process that ended with an error or at its limit; else ""
    goals   a list of name, part, row, figure, value (null: not measured), sense ("at most", "at least"), goal, met (null: not measured),
            over (part and row whose figure divides the value, or null)

Figures of a row: `ms` and `seconds` of one call, `tflops` (10^12 operations a second), `gemm_share` (tflops over those of a bfloat16
product of 8192^3 in the same process), `peak_gb` (10^9 bytes of the allocator at its peak), `clips`, and what the row's part says.
"""
