def main():
    import os
    import sys

    write, leave = os.write, os._exit
    status = os.dup(3)
    os.close(3)
    token, _, source = sys.stdin.buffer.read().partition(b"\n")
    sys.stdin = open(os.devnull)
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
        said = token
    except BaseException as error:
        try:
            text = str(error.code or 0 if isinstance(error, SystemExit) else error)
        except BaseException:
            text = ""
        errno = getattr(error, "errno", None)
        said = f"{type(error).__name__}:{errno if isinstance(errno, int) else 0}:{text[:1000]}".encode("utf-8", "replace")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass
    write(status, said)
    leave(0)


main()
