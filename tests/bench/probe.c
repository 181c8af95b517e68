/*
 * Loads the programs of probe.bpf.c, says "ready", and empties their ring buffer until its standard input is closed;
 * then says how many records came and how many were lost.
 */
#include <poll.h>
#include <stdio.h>
#include <bpf/libbpf.h>

#include "probe.skel.h"

static unsigned long long records;

static int take(void *context, void *data, size_t length)
{
	(void)context;
	(void)data;
	records += length == 200;
	return 0;
}

int main(void)
{
	struct probe *probe = probe__open_and_load();
	if (!probe || probe__attach(probe)) {
		fprintf(stderr, "the C programs cannot be loaded\n");
		return 1;
	}
	struct ring_buffer *ring = ring_buffer__new(bpf_map__fd(probe->maps.resets), take, NULL, NULL);
	if (!ring) {
		fprintf(stderr, "no ring buffer\n");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	struct pollfd input = {.fd = 0, .events = POLLIN | POLLHUP};
	while (poll(&input, 1, 1) == 0)
		ring_buffer__consume(ring);
	ring_buffer__consume(ring);
	printf("%llu %llu\n", records, (unsigned long long)probe->bss->lost);
	ring_buffer__free(ring);
	probe__destroy(probe);
	return 0;
}
