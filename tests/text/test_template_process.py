"""The process in which chat templates run: started, kept, killed, cancelled, forked, closed."""

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgerun.errors import Cancelled, TemplateError, UsageError
from edgerun.text import ChatTemplate, template_child
from edgerun.text.template_process import AT_REST_BYTES, Limits, TemplateProcess

HI = [{"role": "user", "content": "hi"}]
ECHO = "{{ messages[-1].content }}"
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


@pytest.fixture
def process():
    made = TemplateProcess()
    yield made
    made.close()


def echo(process):
    return ChatTemplate(ECHO, process=process).render(HI)


def pid(process):
    return process._holder.worker.process.pid


def kill(process):
    number = pid(process)
    os.kill(number, signal.SIGKILL)
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def is_gone(number):
    return not psutil.pid_exists(number)


def test_one_process_serves_all_renderings(process):
    assert not psutil.Process().children()
    process.start()
    first = pid(process)
    assert [echo(process) for _ in range(3)] == ["hi"] * 3
    assert pid(process) == first


def test_at_rest_it_takes_what_planning_counts(process):
    echo(process)
    status = Path(f"/proc/{pid(process)}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kib << 10 <= AT_REST_BYTES
    assert "edgerun/text/template_worker.py" in " ".join(psutil.Process(pid(process)).cmdline())


def test_it_may_not_start_processes_or_write(process):
    echo(process)
    limits = psutil.Process(pid(process))
    for which in (psutil.RLIMIT_NPROC, psutil.RLIMIT_FSIZE, psutil.RLIMIT_CORE):
        assert limits.rlimit(which) == (0, 0)
    assert limits.rlimit(psutil.RLIMIT_NOFILE)[1] <= 16


def test_a_killed_process_is_started_again(process):
    for _ in range(2):
        assert echo(process) == "hi"
        kill(process)
    assert echo(process) == "hi"


def test_killed_while_it_renders_again_and_again(process):
    for _ in range(3):
        echo(process)
        number = pid(process)
        killer = threading.Timer(0.1, os.kill, (number, signal.SIGKILL))
        killer.start()
        with pytest.raises(TemplateError, match="^the chat template ended its process \\(signal 9\\)"):
            ChatTemplate(ENDLESS, process=process).render(HI)
        assert is_gone(number)
    assert echo(process) == "hi"


def test_cancelled_while_it_renders(process):
    for _ in range(2):
        asked = iter(range(10))
        with pytest.raises(Cancelled):
            ChatTemplate(ENDLESS, process=process).render(HI, cancelled=lambda asked=asked: next(asked) == 3)
        assert echo(process) == "hi"


def test_interrupted_while_it_renders(process):
    def interrupt():
        raise KeyboardInterrupt

    echo(process)
    number = pid(process)
    with pytest.raises(KeyboardInterrupt):
        ChatTemplate(ENDLESS, process=process).render(HI, cancelled=interrupt)
    assert is_gone(number)
    assert echo(process) == "hi"


def test_interrupted_anywhere():
    """Ctrl-C at any moment, starting and ending the process among them: the next text is right, and nothing is left."""
    rng, before, fired = random.Random(5), open_files(), 0
    process = TemplateProcess()
    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for i in range(90):
            if i % 10 == 0 and process._holder.worker is not None:
                kill(process)
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.choice((0.0003, 0.003, 0.1)) * rng.random() + 1e-6)
                ChatTemplate(ENDLESS if i % 3 == 0 else ECHO, process=process).render(HI, cancelled=lambda: False)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                fired += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            text = f"text {i}"
            assert ChatTemplate(ECHO, process=process).render([{"role": "user", "content": text}]) == text
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert fired > 30
    in_another = []
    other = threading.Thread(target=lambda: in_another.append(echo(process)))
    other.start()
    other.join(30)
    assert in_another == ["hi"], "the turn was lost"
    process.close()
    assert open_files() == before
    assert not psutil.Process().children()


def test_cancelled_while_another_renders(process):
    stop = threading.Event()
    other = threading.Thread(target=lambda: pytest.raises(Cancelled, endless, process, stop))
    other.start()
    wait_until_busy(process)
    with pytest.raises(Cancelled):
        ChatTemplate(ECHO, process=process).render(HI, cancelled=lambda: True)
    stop.set()
    other.join()
    assert echo(process) == "hi"


def wait_until_busy(process):
    while process._holder.worker is None or process._holder.worker.idle:
        time.sleep(0.01)


def endless(process, stop):
    ChatTemplate(ENDLESS, process=process).render(HI, cancelled=stop.is_set)


def test_processor_time_is_limited_by_the_system():
    process = TemplateProcess(Limits(cpu_s=0.1, wall_s=60))
    with pytest.raises(TemplateError, match="does not end within 0.1 s"):
        ChatTemplate(ENDLESS, process=process).render(HI)
    process.close()


@pytest.mark.parametrize("trust_system", [True, False])
def test_memory_is_limited_where_the_system_helps_and_where_it_does_not(trust_system):
    process = TemplateProcess(Limits(memory_bytes=40 << 20), trust_system=trust_system)
    greedy = "{% set ns = namespace(x=['x' * 1000000]) %}{% for i in range(9000) %}" + (
        "{% set ns.x = [ns.x, i | string * 1000000] %}{% endfor %}"
    )
    with pytest.raises(TemplateError, match="needs more than 40 MiB of memory"):
        ChatTemplate(greedy, process=process).render(HI)
    assert echo(process) == "hi"
    process.close()


def test_long_conversations_are_no_attack(process):
    words = [{"role": "user", "content": "word " * 2000}] * 500
    smileys = [{"role": "user", "content": "\U0001f600 word " * 1000}] * 500
    source = "{% for m in messages %}{{ '<' + m.role + '>\\n' + m.content | trim + '\\n' }}{% endfor %}"
    for messages in (words, smileys):
        wanted = "".join(f"<user>\n{m['content'].strip()}\n" for m in messages)
        assert ChatTemplate(source, process=process).render(messages) == wanted


def test_what_is_given_and_written_is_bounded():
    process = TemplateProcess(Limits(request_bytes=10_000, text_chars=1000, text_per_byte=0))
    with pytest.raises(TemplateError, match="is given .* of messages; the most is"):
        ChatTemplate(ECHO, process=process).render([{"role": "user", "content": "x" * 20_000}])
    with pytest.raises(TemplateError, match="writes 1001 characters; the most is 1000"):
        ChatTemplate("{{ 'x' * 1001 }}", process=process).render(HI)
    assert len(ChatTemplate("{{ 'x' * 1000 }}", process=process).render(HI)) == 1000
    process.close()


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), b"x", 10**5000, {(1, 2): 3}, [[]]],
    ids=["set", "object", "bytes", "number", "key", "circle"],
)
def test_variables_must_be_json(value, process):
    if value == [[]]:
        value[0] = value
    with pytest.raises(TemplateError, match="what JSON can hold"):
        ChatTemplate(ECHO, process=process).render(HI, variables={"x": value})


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_variables_that_the_chat_sets(name, process):
    with pytest.raises(UsageError, match=f"the template variable '{name}'"):
        ChatTemplate(ECHO, process=process).render(HI, variables={name: []})


def test_text_comes_back_as_it_went(process):
    text = 'a\0\x1b\ud800\udfffé\U0001f600\u2028\r\n"\\'
    message = [{"role": "user", "content": text, "more": {"a": [1.5, None, True, float("inf"), 2**70]}}]
    assert ChatTemplate("{{ messages[0].content }}", process=process).render(message) == text
    shown = ChatTemplate("{{ messages[0].more }}", process=process).render(message)
    assert shown == str({"a": [1.5, None, True, float("inf"), 2**70]})


def test_words_of_a_template_do_not_reach_the_terminal_raw(process):
    with pytest.raises(TemplateError, match=r"of Model refuses: a\ufffd\[31mb") as caught:
        ChatTemplate("{{ raise_exception('a\\x1b[31mb') }}", model="Model", process=process).render(HI)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ raise_exception('y' * 1000000) }}", name="rag", process=process).render(HI)
    assert str(caught.value).startswith("the chat template 'rag' refuses: yyy") and len(str(caught.value)) < 2000


def test_threads_take_turns(process):
    wrong = []

    def ask(name):
        for i in range(20):
            if (
                ChatTemplate(ECHO, process=process).render([{"role": "user", "content": f"{name} {i}"}])
                != f"{name} {i}"
            ):
                wrong.append((name, i))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def open_files():
    gc.collect()
    return psutil.Process().num_fds()


def test_closing_leaves_nothing():
    before = open_files()
    for _ in range(3):
        process = TemplateProcess()
        echo(process)
        number = pid(process)
        process.close()
        process.close()
        assert is_gone(number)
        with pytest.raises(UsageError, match="closed"):
            echo(process)
    assert open_files() == before
    assert not psutil.Process().children()


def test_one_that_nobody_closes_ends_with_its_owner():
    before = open_files()
    template = ChatTemplate(ECHO)
    template.render(HI)
    number = pid(template._process)
    del template
    gc.collect()
    assert is_gone(number)
    assert open_files() == before


def test_closed_while_it_renders():
    process = TemplateProcess()
    echo(process)
    number = pid(process)
    threading.Timer(0.1, process.close).start()
    with pytest.raises(UsageError, match="closed"):
        ChatTemplate(ENDLESS, process=process).render(HI)
    assert is_gone(number)


def test_it_ends_when_this_process_is_killed():
    program = (
        "import os, signal\nfrom edgerun.text import ChatTemplate\n"
        f"template = ChatTemplate({ECHO!r})\n"
        "template.render([{'role': 'user', 'content': 'hi'}])\n"
        "print(template._process._holder.worker.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    number = int(done.stdout)
    for _ in range(500):
        if is_gone(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    else:
        pytest.fail("it lives on")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("rendering", [False, True], ids=["idle", "while another thread renders"])
def test_a_fork_has_its_own(rendering, process):
    echo(process)
    number = pid(process)
    stop = threading.Event()
    other = threading.Thread(target=lambda: pytest.raises(Cancelled, endless, process, stop))
    if rendering:
        other.start()
        wait_until_busy(process)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = echo(process) == "hi" and pid(process) != number
            process.close()
            status = 0 if own else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if rendering:
        assert other.is_alive()
        stop.set()
        other.join()
    else:
        assert pid(process) == number
    assert echo(process) == "hi"


def test_under_a_limit_of_this_process():
    """Too little address space for anything: a typed error or the text, and no hang."""
    program = (
        "import resource\nfrom edgerun.errors import TemplateError\nfrom edgerun.text import ChatTemplate\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "for more in (0, 1 << 20, 8 << 20, 100 << 20):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))\n"
        "    try:\n"
        f"        print(ChatTemplate({ECHO!r}).render([{{'role': 'user', 'content': 'hi'}}]))\n"
        "    except (TemplateError, MemoryError) as error:\n"
        "        print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"hi", "TemplateError"}
    assert done.stdout.split()[-1] == "hi"


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false", "/bin/cat", "/bin/echo"])
def test_an_interpreter_that_is_none(python):
    process = TemplateProcess(python=python)
    process.start()
    for _ in range(2):
        with pytest.raises(TemplateError, match="^the chat template cannot be rendered: "):
            echo(process)
    process.close()


def test_python_embedded_in_another_program(monkeypatch):
    real = sys.executable
    for executable in ("/usr/bin/blender", "", None):
        monkeypatch.setattr(sys, "executable", executable)
        process = TemplateProcess()
        assert echo(process) == "hi"
        process.close()
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    with pytest.raises(TemplateError, match="has no Python beside it"):
        echo(TemplateProcess())
    monkeypatch.setattr(sys, "executable", real)
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # an application that would start itself again
    with pytest.raises(TemplateError, match="is .*python.*, not Python"):
        echo(TemplateProcess())


def test_without_jinja2(monkeypatch):
    monkeypatch.setattr(template_child, "_folders", lambda: ["/nowhere"])
    with pytest.raises(TemplateError, match="jinja2 cannot be imported"):
        echo(TemplateProcess())


def test_this_process_does_not_import_jinja2():
    program = f"import sys\nfrom edgerun.text import ChatTemplate\nChatTemplate({ECHO!r}).render({HI!r})\n"
    program += "assert 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_resource_limits_of_this_process_are_left_alone(process):
    before = resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)
    echo(process)
    assert (resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)) == before
