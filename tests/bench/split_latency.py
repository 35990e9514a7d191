#!/usr/bin/env python3
"""Gaps between tokens of decoding streams while long prompts arrive, against a running `latentmesh serve`.

  split_latency.py PORT [STREAMS [PROMPT_TOKENS]]

Streams of 3000 tokens decode; meanwhile 5 prompts of other tokens are sent one after the other, each asking for 8 tokens.
Prints the median, the 95th percentile and the longest gap of the streams while such a prompt is being answered and
else, and the prompts' times to the first token.
"""
import http.client
import json
import random
import sys
import threading
import time

port = int(sys.argv[1])
streams = int(sys.argv[2]) if len(sys.argv) > 2 else 4
stream_tokens = 3000
prompt_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 1500


def arrivals(prompt, tokens):
    """Times at which chunks of the answer arrive."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    times = []
    for line in answer:
        if line.startswith(b"data: {"):
            times.append(time.perf_counter())
    return times


def main():
    rng = random.Random(1)
    results = [[] for _ in range(streams)]

    def decode(i):
        results[i] = arrivals([rng.randrange(300, 4000) for _ in range(8)], stream_tokens)

    arrivals([300, 301], 4)
    threads = [threading.Thread(target=decode, args=(i,)) for i in range(streams)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    busy, first = [], []
    for _ in range(5):
        begin = time.perf_counter()
        times = arrivals([rng.randrange(300, 4000) for _ in range(prompt_tokens)], 8)
        busy.append((begin, times[0]))
        first.append(times[0] - begin)
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    gaps = {True: [], False: []}
    for times in results:
        # A chunk holds two tokens where one ends within a letter.
        assert len(times) >= 0.8 * stream_tokens, f"{len(times)} chunks came"
        for a, b in zip(times, times[1:]):
            gaps[any(a < end and b > begin for begin, end in busy)].append((b - a) * 1000)
    for during, name in ((True, "while a prompt is computed"), (False, "else")):
        values = sorted(gaps[during])
        if values:
            print(f"gap {name}: {len(values)} gaps, median {values[len(values) // 2]:.2f} ms, "
                  f"95 % {values[int(len(values) * 0.95)]:.2f} ms, longest {values[-1]:.2f} ms")
    print("time to first token of the prompts: " + ", ".join(f"{1000 * t:.0f}" for t in first) + " ms")


main()
