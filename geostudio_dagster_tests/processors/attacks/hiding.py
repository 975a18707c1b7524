"""Attacks on what the sandbox itself forgets: descriptors, kernel memory, trees, side doors."""

from geostudio_dagster_tests.processors.attacks.attack import Attack

_MIB = 1024**2

HIDING = [
    Attack(
        "inherited_descriptors",
        """
        held = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                held[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                pass  # the listing's own
        print("holds", held)
        assert set(held) == {0, 1, 2}, held
        assert held[0] == "/dev/null"
        """,
        says=("holds",),
    ),
    Attack(
        "descriptors_of_others",
        """
        for pid in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
            for number in range(12):
                path = f"/proc/{pid}/fd/{number}"
                attempt(path, lambda: os.open(path, os.O_RDWR))
                attempt(path, lambda: os.open(path, os.O_WRONLY))
        """,
        says=("blocked",),
    ),
    Attack(
        "trace_of_a_child",
        machine="x86_64",
        body="""
        child = os.fork()
        if not child:
            attempt("traceme", lambda: call(101, 0, 0, 0, 0))
            time.sleep(30)
        attempt("attach", lambda: call(101, 16, child, 0, 0))
        attempt("seize", lambda: call(101, 0x4206, child, 0, 0))
        attempt("memory", lambda: call(310, child, 0, 0, 0, 0, 0))
        attempt("descriptor", lambda: call(438, os.pidfd_open(child), 1, 0))
        attempt("kcmp", lambda: call(312, os.getpid(), child, 0, 1, 1))
        """,
        says=("blocked",),
    ),
    Attack(
        "system_v",
        machine="x86_64",
        body="""
        attempt("semaphores", lambda: call(64, 0, 32_000, 0o1600))
        attempt("messages", lambda: call(68, 0, 0o1600))
        attempt("memory", lambda: call(29, 0, 4096, 0o1600))
        attempt("queue", lambda: call(240, b"x", 0o102, 0o600, None))
        """,
        says=("semaphores blocked", "messages blocked", "memory blocked", "queue blocked"),
    ),
    Attack(
        "new_system_calls",
        """
        for number in range(463, 480):
            attempt(number, lambda: call(number, -1, 0, 0, 0, 0))
            assert ctypes.get_errno() == errno.ENOSYS, number
        """,
        says=("blocked",),
    ),
    Attack(
        "better_turns",
        """
        attempt("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))
        attempt("nice", lambda: os.nice(-5))
        attempt("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
        attempt("name", lambda: socket.sethostname("evil"))
        attempt("core", lambda: open("/proc/sys/kernel/core_pattern", "w"))
        """,
        says=("blocked",),
    ),
    Attack(
        "page_tables",
        """
        import mmap
        # Read-only pages of nothing count as no memory, but the tables that list them do.
        held = []
        for _ in range(96):
            area = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            area.madvise(15)  # no huge pages
            area.madvise(22)  # all of it, now
            held.append(area)
        print("mapped all", flush=True)
        time.sleep(1)
        """,
        reasons=("memory",),
        says=("of memory",),
        limits={"memory_bytes": 96 * _MIB},
    ),
    Attack(
        "spin_in_kernel",
        """
        source, size = os.open("/dev/zero", os.O_RDONLY), 4 << 20
        while True:
            os.read(source, size)
        """,
        reasons=("cpu",),
        says=("processor time",),
        limits={"cpu_s": 1.0, "wall_s": 20.0},
    ),
    Attack(
        "many_threads",
        """
        made = 0
        try:
            while made < 500:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                made += 1
        except RuntimeError as error:
            print("stopped after", made, error)
            assert made < 20, made
            os._exit(8)
        """,
        reasons=("failed",),
        says=("exit code 8",),
    ),
    Attack(
        "twice_forked",
        """
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.setsid()
                os.closerange(0, 256)
                while True:
                    time.sleep(0.01)
            os._exit(0)
        os.wait()
        os.setpgid(0, 0)
        """,
        reasons=("ok", "failed"),
    ),
    Attack(
        "deep_tree",
        """
        for place in [OUTPUT, os.getcwd()]:
            os.chdir(place)
            for _ in range(3000):
                os.mkdir("d")
                os.chdir("d")
            open("far.bin", "wb").write(bytes(1000))
        time.sleep(60)
        """,
        reasons=("disk",),
        says=("folders within each other",),
        limits={"wall_s": 20.0},
    ),
    Attack(
        "far_below",
        """
        # Beyond the longest path that the system takes, where a careless count sees nothing.
        for _ in range(60):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        # More than may be left, and less than would be noticed as it is written.
        for number in range(6):
            with open(f"{number}.bin", "wb") as file:
                for _ in range(16):
                    file.write(bytes(1 << 20))
        time.sleep(60)
        """,
        reasons=("disk",),
        says=("folders",),
    ),
    Attack(
        "closed_folders",
        """
        os.mkdir(out("closed"))
        open(out("closed/a.csv"), "w").write("x\\n1\\n")
        os.chmod(out("closed"), 0)
        os.makedirs("shut/more")
        os.chmod("shut", 0)
        os.chmod(OUTPUT, 0)
        """,
        collected=("closed_a.csv",),
    ),
    Attack(
        "sparse_working_file",
        """
        for number in range(200):
            with open(f"{number}.bin", "wb") as file:
                file.truncate(19 << 20)  # takes no space: no harm
        """,
    ),
    Attack(
        "watched_input",
        """
        instance = libc.inotify_init()
        libc.inotify_add_watch(instance, INPUT.encode(), 0x0FFF)
        attempt("lease", lambda: call(72, os.open(INPUT, os.O_RDONLY), 1024, 1))
        attempt("attribute", lambda: os.setxattr(INPUT, "user.evil", b"x"))
        attempt("times", lambda: os.utime(INPUT))
        """,
        says=("lease blocked", "attribute blocked", "times blocked"),
        machine="x86_64",
    ),
    Attack(
        "dumped_core",
        """
        import resource
        attempt("limit", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)))
        print("core", resource.getrlimit(resource.RLIMIT_CORE))
        os.kill(os.getpid(), signal.SIGSEGV)
        """,
        reasons=("signal",),
        says=("limit blocked", "SIGSEGV"),
    ),
]
