"""Attacks that want all of the machine: its processors, memory, disks, processes, patience."""

from geostudio_dagster_tests.processors.attacks.attack import Attack

_MIB = 1024**2
_TO_SPEAK_S = 6.0  # until an interpreter has begun, on a busy machine, too

EXHAUSTING = [
    Attack(
        "fork_bomb",
        """
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        reasons=("cpu", "processes", "timeout", "memory"),
        says=("was ended",),
        limits={"wall_s": 2.0},
    ),
    Attack(
        "forks_are_counted",
        """
        children = []
        try:
            for _ in range(200):
                children.append(pid := os.fork())
                if not pid:
                    time.sleep(60)
        except OSError as error:
            print("stopped after", len(children), "by", error)
            assert len(children) < 20
            sys.exit(7)
        """,
        reasons=("failed",),
        says=("exit code 7",),
    ),
    Attack(
        "threads",
        """
        while True:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        """,
        reasons=("failed", "processes"),
        says=("thread",),
    ),
    Attack(
        "memory",
        """
        held = []
        while True:
            held.append(bytearray(16 << 20))
        """,
        reasons=("memory",),
        says=("of memory",),
    ),
    Attack(
        "memory_at_once",
        "len(bytearray(1 << 40))",
        reasons=("memory",),
        says=("of memory",),
    ),
    Attack(
        "shared_memory",
        """
        import mmap
        area = mmap.mmap(-1, 1 << 30)
        for place in range(0, 1 << 30, 4096):
            area[place] = 1
        time.sleep(60)
        """,
        reasons=("memory",),
        says=("of memory",),
    ),
    Attack(
        "memory_of_children",
        """
        for _ in range(6):
            if not os.fork():
                held = bytearray(os.urandom(1 << 20) * 90)
                time.sleep(60)
        time.sleep(60)
        """,
        reasons=("memory",),
        says=("of memory",),
    ),
    Attack(
        "uncounted_memory",
        machine="x86_64",
        body="""
        attempt("memfd", lambda: os.memfd_create("x"))
        attempt("shmget", lambda: call(29, 0, 1 << 30, 0o1600))
        attempt("memfd_secret", lambda: call(447, 0))
        attempt("msgget", lambda: call(68, 0, 0o1600))
        """,
        says=("blocked",),
    ),
    Attack(
        "temporary_files",
        """
        for place in ["/tmp", "/dev/shm"]:
            written = 0
            try:
                with open(os.path.join(place, "x"), "wb") as file:
                    while True:
                        written += file.write(bytes(1 << 20))
            except OSError as error:
                print(place, written >> 20, error)
                assert written < 32 << 20
        sys.exit(9)
        """,
        reasons=("failed",),
        says=("exit code 9",),
    ),
    Attack(
        "sparse_file",
        """
        with open(out("x.bin"), "wb") as file:
            file.truncate(100 << 30)
        """,
        reasons=("failed",),
        says=("File too large",),
    ),
    Attack(
        "dense_file",
        """
        with open(out("x.bin"), "wb") as file:
            while True:
                file.write(bytes(1 << 20))
        """,
        reasons=("failed",),
        says=("File too large",),
    ),
    Attack(
        "dense_files",
        """
        for number in range(10_000):
            with open(out(f"{number}.bin"), "wb") as file:
                for _ in range(16):
                    file.write(bytes(1 << 20))
        """,
        reasons=("disk",),
        says=("MiB",),
    ),
    Attack(
        "files_in_the_working_folder",
        """
        for number in range(10_000):
            with open(f"{number}.bin", "wb") as file:
                for _ in range(16):
                    file.write(bytes(1 << 20))
        """,
        reasons=("disk",),
        says=("MiB",),
    ),
    Attack(
        "unnamed_files",
        """
        held = []
        while True:
            file = open(out("x.bin"), "wb")
            os.unlink(out("x.bin"))
            for _ in range(16):
                file.write(bytes(1 << 20))
            held.append(file)
        """,
        reasons=("disk", "failed"),
        says=("wrote more than",),
    ),
    Attack(
        "reserved_space",
        """
        file = os.open(out("x.bin"), os.O_CREAT | os.O_RDWR)
        attempt("keep size", lambda: call(285, file, 1, 0, ctypes.c_long(100 << 30)))
        """,
        machine="x86_64",
        says=("blocked",),
        collected=("x.bin",),
    ),
    Attack(
        "tiny_files",
        """
        for number in range(1_000_000):
            os.close(os.open(out(str(number)), os.O_CREAT | os.O_WRONLY))
        """,
        reasons=("disk",),
        says=("files",),
    ),
    Attack(
        "tiny_files_in_memory",
        """
        for number in range(1_000_000):
            os.close(os.open(f"/tmp/{number}", os.O_CREAT | os.O_WRONLY))
        """,
        reasons=("disk",),
        says=("files",),
    ),
    Attack(
        "open_files",
        """
        held = [open("/dev/null") for _ in range(10_000)]
        """,
        reasons=("failed",),
        says=("Too many open files",),
    ),
    Attack(
        "spin",
        """
        while True:
            pass
        """,
        reasons=("cpu",),
        says=("processor time",),
        limits={"cpu_s": 1.0},
    ),
    Attack(
        "spin_in_turns",
        """
        while True:
            if not os.fork():
                begin = time.process_time()
                while time.process_time() - begin < 0.2:
                    pass
                os._exit(0)
            os.wait()
        """,
        reasons=("cpu",),
        says=("processor time",),
        limits={"cpu_s": 1.0},
    ),
    Attack(
        "sleep",
        """
        print("good night", flush=True)
        time.sleep(10_000)
        """,
        reasons=("timeout",),
        says=("good night", "longer than"),
        limits={"wall_s": _TO_SPEAK_S},
    ),
    Attack(
        "deaf_to_signals",
        """
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, lambda *_: None)
        print("deaf", flush=True)
        while True:
            time.sleep(100)
        """,
        reasons=("timeout",),
        says=("deaf",),
        limits={"wall_s": _TO_SPEAK_S},
    ),
    Attack(
        "stopped",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        reasons=("timeout",),
        limits={"wall_s": 1.5},
    ),
    Attack(
        "silent",
        """
        os.close(1)
        os.close(2)
        time.sleep(10_000)
        """,
        reasons=("timeout",),
        limits={"wall_s": 1.5},
    ),
    Attack(
        "daemon",
        """
        if not os.fork():
            os.setsid()
            if not os.fork():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    open(out("growing.csv"), "a").write("x,y\\n")
                    time.sleep(0.001)
            os._exit(0)
        while not os.path.exists(out("growing.csv")):
            time.sleep(0.01)
        """,
        collected=("growing.csv",),
    ),
    Attack(
        "crash",
        "os.abort()",
        reasons=("signal",),
        says=("SIGABRT",),
    ),
    Attack(
        "raised_limits",
        """
        import resource
        for what in [resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_NPROC,
                     resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE]:
            attempt(what, lambda: resource.setrlimit(what, (resource.RLIM_INFINITY,) * 2))
        """,
        says=("blocked",),
    ),
]
