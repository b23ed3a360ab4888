/* The switch of `switch.py`, which says what it does, opens the taps and starts this: switch TAPS DELAY RATE LOSS
 *
 * TAPS is "5,6,7", descriptors of taps with virtio headers; DELAY in seconds, RATE in bits a second, LOSS of a packet.
 * What waits for a cable waits in a queue of that cable, in which it is in order: nothing is sorted. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_PORTS = 64,
    MOST_FRAME = 66000,          /* a segment that the kernel would cut up itself, and its headers */
    MOST_WAITING = 32 << 20,     /* bytes for one cable: a switch has no more room */
    AT_ONCE = 64,                /* frames of one port before the others have a turn */
    AROUND = 24,                 /* bytes of every packet that no program sees: preamble, checksum, gap */
    EARLY_NS = 30000,            /* what is due so soon is handed over now: to sleep takes as much longer than it should */
    HEADER = sizeof(struct virtio_net_hdr),
};

struct frame {
    struct frame *next;
    int64_t due_ns;
    uint32_t size;
    uint8_t bytes[];
};

struct port {
    int tap;
    int is_down;
    int64_t sending_until_ns, receiving_until_ns;
    struct frame *first, *last;  /* under way to it */
    int64_t waiting;             /* bytes of them */
};

static struct port ports[MOST_PORTS];
static int n_ports;
static double delay_s, bytes_per_s, loss;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

/* As packets on the wire: a large segment goes as several, each with headers of its own. */
static void on_wire(const uint8_t *bytes, uint32_t size, int64_t *n_bytes, int *packets) {
    const struct virtio_net_hdr *header = (const void *)bytes;
    uint32_t frame = size - HEADER;
    *packets = 1;
    *n_bytes = frame + AROUND;
    if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE || !header->gso_size || frame < 54)
        return;
    const uint8_t *ip = bytes + HEADER + 14, *tcp = ip + 4 * (ip[0] & 15);
    uint32_t headers = 14 + 4 * (ip[0] & 15) + 4 * (tcp[12] >> 4);
    if (headers < frame) {
        *packets = (frame - headers + header->gso_size - 1) / header->gso_size;
        *n_bytes = frame - headers + (int64_t)*packets * (headers + AROUND);
    }
}

static void pass_on(const uint8_t *bytes, uint32_t size, int64_t took_ns, int64_t sent_ns, struct port *to) {
    if (to->is_down || to->waiting + size > MOST_WAITING)
        return;
    struct frame *frame = malloc(sizeof *frame + size);
    if (!frame)
        return;
    /* its first byte arrives a delay after it was sent, and no earlier than the cable is free */
    frame->due_ns = later(sent_ns + (int64_t)(delay_s * 1e9), to->receiving_until_ns + took_ns);
    to->receiving_until_ns = frame->due_ns;
    frame->next = NULL;
    frame->size = size;
    memcpy(frame->bytes, bytes, size);
    if (to->last)
        to->last->next = frame;
    else
        to->first = frame;
    to->last = frame;
    to->waiting += size;
}

/* Frames that a namespace sends. */
static void take(struct port *from) {
    static uint8_t bytes[MOST_FRAME];
    for (int i = 0; i < AT_ONCE; i++) {
        ssize_t size = read(from->tap, bytes, sizeof bytes);
        if (size < HEADER + 14)
            return;
        int64_t n_bytes;
        int packets, lost = 0;
        on_wire(bytes, size, &n_bytes, &packets);
        for (int each = 0; loss > 0 && each < packets; each++)
            lost |= drand48() < loss;
        if (from->is_down || lost)
            continue;
        int64_t took_ns = n_bytes / bytes_per_s * 1e9;
        int64_t sent_ns = from->sending_until_ns = later(now_ns(), from->sending_until_ns) + took_ns;
        const uint8_t *address = bytes + HEADER;
        if (address[0] & 1) { /* for all */
            for (int other = 0; other < n_ports; other++)
                if (&ports[other] != from)
                    pass_on(bytes, size, took_ns, sent_ns, &ports[other]);
        } else if (address[5] && address[5] <= n_ports) {
            pass_on(bytes, size, took_ns, sent_ns, &ports[address[5] - 1]);
        }
    }
}

/* Hand over what is due; how long until the next is. */
static int64_t deliver(void) {
    int64_t wait_ns = 200000000;
    for (int i = 0; i < n_ports; i++) {
        struct port *to = &ports[i];
        while (to->first) {
            int64_t left_ns = to->first->due_ns - now_ns();
            if (left_ns > EARLY_NS) {
                wait_ns = left_ns - EARLY_NS < wait_ns ? left_ns - EARLY_NS : wait_ns;
                break;
            }
            struct frame *frame = to->first;
            to->first = frame->next;
            if (!to->first)
                to->last = NULL;
            to->waiting -= frame->size;
            if (!to->is_down && write(to->tap, frame->bytes, frame->size) < 0 && errno == EBADF)
                exit(1);
            free(frame); /* any other error is a full queue there: lost, as on a wire */
        }
    }
    return wait_ns;
}

static void obey(const char *line) {
    char word[16];
    double value;
    if (sscanf(line, "%15s %lf", word, &value) != 2)
        exit(2);
    int port = (int)value, is_port = port >= 0 && port < n_ports;
    if (!strcmp(word, "down") && is_port)
        ports[port].is_down = 1;
    else if (!strcmp(word, "up") && is_port)
        ports[port].is_down = 0;
    else if (!strcmp(word, "delay"))
        delay_s = value;
    else if (!strcmp(word, "rate"))
        bytes_per_s = value / 8;
    else if (!strcmp(word, "loss"))
        loss = value;
    else
        exit(2);
    puts("done");
    fflush(stdout);
}

int main(int count, char **given) {
    if (count != 5)
        return 2;
    for (char *tap = strtok(given[1], ","); tap && n_ports < MOST_PORTS; tap = strtok(NULL, ","))
        ports[n_ports++].tap = atoi(tap);
    delay_s = atof(given[2]), bytes_per_s = atof(given[3]) / 8, loss = atof(given[4]);
    srand48(1);
    prctl(PR_SET_TIMERSLACK, 1);
    puts("ready");
    fflush(stdout);
    struct pollfd watched[MOST_PORTS + 1];
    for (int i = 0; i < n_ports; i++)
        watched[i] = (struct pollfd){ports[i].tap, POLLIN, 0};
    watched[n_ports] = (struct pollfd){0, POLLIN, 0};
    setvbuf(stdin, NULL, _IONBF, 0); /* or a second line would wait where poll does not see it */
    for (;;) {
        int64_t wait_ns = deliver();
        struct timespec wait = {0, wait_ns};
        if (ppoll(watched, n_ports + 1, &wait, NULL) <= 0)
            continue;
        for (int i = 0; i < n_ports; i++)
            if (watched[i].revents)
                take(&ports[i]);
        if (watched[n_ports].revents) {
            char line[64];
            if (!fgets(line, sizeof line, stdin))
                return 0;
            obey(line);
        }
    }
}
