/*
 * The Linux guest's only process: /init of its initramfs.
 *
 * It loads the network driver, sets the address, prints READY on the console,
 * and then does two things until the machine is switched off:
 *
 *   - a TCP service on port 7000. A client sends lines `<seq> ...`; the answer
 *     to each is `<seq> <n>`, n being one more than in the answer before,
 *     whichever connection that was. So a client can tell an answer that was
 *     given from one that was taken back by a takeover.
 *   - a thread that rewrites memory pages at a steady pace, checks first that
 *     they hold what it wrote last, and prints `CNT <n>`, or `CORRUPT ...`.
 *
 * Kernel command line:
 *   ip=A.B.C.D/LEN  address of eth0 (default 10.77.0.10/24)
 *   np=N            pages rewritten each round (default 0: no thread at all)
 *   ms=N            pause between rounds (default 100)
 *   every=N         print CNT every N rounds (default 1)
 *
 * An initramfs with a Redis in it (/usr/bin/redis-server) runs that in place of the
 * service: port 6379, nothing on disk. READY comes when it takes connections.
 *
 * There is nothing else: no shell, no daemon, no timer. An idle guest writes to
 * hardly any memory. If this program fails, the kernel panics (it is process 1),
 * and with `panic=-1` and QEMU's -no-reboot, QEMU exits: a test cannot miss it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 7000, CLIENTS = 64, LINE = 4096, PAGE = 4096 };

/* One write per message, so that lines of the two threads do not mix. */
static void say(const char *format, ...)
{
    char line[256];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (write(STDOUT_FILENO, line, (size_t)length) < 0)
        _exit(1);
}

static _Noreturn void fail(const char *what)
{
    say("FAILED %s: %s\n", what, strerror(errno));
    _exit(1); /* process 1 gone: kernel panic */
}

/* The value of `name=` on the kernel command line, or `otherwise`. */
static const char *option(const char *command_line, const char *name, const char *otherwise)
{
    size_t length = strlen(name);

    for (const char *at = command_line; (at = strstr(at, name)); at += length)
        if ((at == command_line || at[-1] == ' ') && at[length] == '=')
            return strndup(at + length + 1, strcspn(at + length + 1, " \n"));
    return otherwise;
}

/* -------------------------------------------------------------- start-up */

/*
 * Load the files that /modules/list names, in that order. A distribution that has
 * the driver built in has an empty list (scripts/guests makes it).
 */
static void load_modules(void)
{
    FILE *list = fopen("/modules/list", "r");
    char name[128], path[160];

    if (!list)
        return;
    while (fscanf(list, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s", name);
        int file = open(path, O_RDONLY | O_CLOEXEC);

        if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
            fail(path);
        close(file);
    }
    fclose(list);
}

static void set_address(int control, unsigned long request, struct ifreq *eth0, const char *ip)
{
    struct sockaddr_in *in = (struct sockaddr_in *)&eth0->ifr_addr;

    memset(in, 0, sizeof *in);
    in->sin_family = AF_INET;
    if (inet_pton(AF_INET, ip, &in->sin_addr) != 1 || ioctl(control, request, eth0))
        fail(ip);
}

/* Programs that are not ours expect it. */
static void set_up_loopback(int control)
{
    struct ifreq lo = {.ifr_name = "lo"};

    if (ioctl(control, SIOCGIFFLAGS, &lo))
        fail("lo");
    lo.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &lo))
        fail("lo up");
}

static void set_up_network(const char *address_and_length)
{
    struct ifreq eth0 = {.ifr_name = "eth0"};
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char *address = strdup(address_and_length), *slash = strchr(address, '/');
    unsigned length = slash ? (unsigned)atoi(slash + 1) : 24;
    char mask[INET_ADDRSTRLEN];

    set_up_loopback(control);
    if (ioctl(control, SIOCGIFINDEX, &eth0)) {
        say("no eth0\n"); /* a machine without a NIC is allowed */
        close(control);
        return;
    }
    if (slash)
        *slash = 0;
    struct in_addr bits = {htonl(length ? ~0u << (32 - length) : 0)};
    inet_ntop(AF_INET, &bits, mask, sizeof mask);

    set_address(control, SIOCSIFADDR, &eth0, address);
    set_address(control, SIOCSIFNETMASK, &eth0, mask);
    if (ioctl(control, SIOCGIFFLAGS, &eth0))
        fail("eth0 flags");
    eth0.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &eth0))
        fail("eth0 up");

    /* Some NICs (e1000) take seconds to find their link. READY should mean it. */
    for (int waited_ms = 0; waited_ms < 5000; waited_ms += 10) {
        struct timespec moment = {0, 10 * 1000000};

        if (!ioctl(control, SIOCGIFFLAGS, &eth0) && eth0.ifr_flags & IFF_RUNNING)
            break;
        nanosleep(&moment, NULL);
    }
    close(control);
    free(address);
}

/* ------------------------------------------------------------ test pages */

static struct {
    unsigned long pages, pause_ms, every;
} churn;

/* Different for each round, page and position within the page. */
static uint64_t pattern(uint64_t round, unsigned long page, unsigned word)
{
    return round * 1000003u + page * 2 + word;
}

static void *churn_pages(void *unused)
{
    size_t size = churn.pages * PAGE;
    volatile uint64_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct timespec pause = {(time_t)(churn.pause_ms / 1000),
                             (long)(churn.pause_ms % 1000) * 1000000};

    (void)unused;
    if (memory == MAP_FAILED)
        fail("memory");
    for (uint64_t round = 1;; round++) {
        for (unsigned long page = 0; page < churn.pages; page++) {
            volatile uint64_t *first = memory + page * (PAGE / 8), *last = first + PAGE / 8 - 1;

            if (round > 1 && (*first != pattern(round - 1, page, 0) ||
                              *last != pattern(round - 1, page, 1)))
                say("CORRUPT round %llu page %lu\n", (unsigned long long)round, page);
            *first = pattern(round, page, 0);
            *last = pattern(round, page, 1);
        }
        if (round % churn.every == 0)
            say("CNT %llu\n", (unsigned long long)round);
        nanosleep(&pause, NULL);
    }
    return NULL; /* not reached */
}

/* --------------------------------------------------------------- service */

struct client {
    size_t filled;
    char line[LINE];
};

static uint64_t answers;

/* Answer every whole line in the buffer. Returns 0 if the client must go. */
static int answer_lines(int socket, struct client *client)
{
    char *line = client->line, *end;

    while ((end = memchr(line, '\n', client->filled - (size_t)(line - client->line)))) {
        char answer[128];
        int seq = (int)strcspn(line, " \r\n"); /* a '\n' is there */

        if (seq > 64)
            return 0;
        int length = snprintf(answer, sizeof answer, "%.*s %llu\n", seq, line,
                              (unsigned long long)++answers);
        /* A client that does not read its answers is not worth waiting for. */
        if (send(socket, answer, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) != length)
            return 0;
        line = end + 1;
    }
    client->filled -= (size_t)(line - client->line);
    memmove(client->line, line, client->filled);
    return client->filled < LINE;
}

static int open_service(void)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, CLIENTS))
        fail("port 7000");
    return listener;
}

/* One thread for all connections: answers have one order, that of `answers`. */
static _Noreturn void serve(int listener)
{
    static struct client clients[CLIENTS];
    static struct pollfd polled[1 + CLIENTS]; /* [0] listens, [i + 1] is client i */

    for (int i = 0; i <= CLIENTS; i++)
        polled[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    polled[0].fd = listener;

    for (;;) {
        if (poll(polled, 1 + CLIENTS, -1) < 0)
            fail("poll");
        for (int i = 0; i < CLIENTS; i++) {
            struct pollfd *slot = &polled[i + 1];
            struct client *client = &clients[i];

            if (slot->fd < 0 || !slot->revents)
                continue;
            ssize_t got = read(slot->fd, client->line + client->filled, LINE - client->filled);
            if (got > 0)
                client->filled += (size_t)got;
            if (got <= 0 || !answer_lines(slot->fd, client)) {
                close(slot->fd);
                slot->fd = -1;
            }
        }
        if (polled[0].revents) {
            int yes = 1, i = 0, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

            if (fd < 0)
                continue;
            while (i < CLIENTS && polled[i + 1].fd >= 0)
                i++;
            if (i == CLIENTS) {
                close(fd);
                continue;
            }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            clients[i].filled = 0;
            polled[i + 1].fd = fd;
            polled[i + 1].revents = 0;
        }
    }
}

/* ----------------------------------------------------------------- redis */

static const char *const redis[] = {
    "/usr/bin/redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no",
    "--save", "", "--appendonly", "no", "--loglevel", "warning", NULL};

/* Start it, and come back when it takes connections. */
static pid_t start_redis(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(6379),
                               .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct timespec moment = {0, 10 * 1000000};
    pid_t child;

    mkdir("/dev", 0755);
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY)
        fail("/dev");
    child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        execv(redis[0], (char *const *)redis);
        fail(redis[0]);
    }
    for (;; nanosleep(&moment, NULL)) {
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int refused = connect(client, (struct sockaddr *)&here, sizeof here);

        close(client);
        if (!refused)
            return child;
        if (waitpid(child, NULL, WNOHANG))
            fail("redis-server ended");
    }
}

int main(void)
{
    static char command_line[4096];
    pthread_t thread;

    mkdir("/proc", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL))
        fail("/proc");
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, command_line, sizeof command_line - 1) < 0)
        fail("/proc/cmdline");
    close(file);

    load_modules();
    set_up_network(option(command_line, "ip", "10.77.0.10/24"));
    int has_redis = !access(redis[0], X_OK), listener = has_redis ? -1 : open_service();
    pid_t child = has_redis ? start_redis() : 0;

    churn.pages = strtoul(option(command_line, "np", "0"), NULL, 10);
    churn.pause_ms = strtoul(option(command_line, "ms", "100"), NULL, 10);
    churn.every = strtoul(option(command_line, "every", "1"), NULL, 10);
    if (!churn.every)
        churn.every = 1;

    say("READY\n");
    if (churn.pages && pthread_create(&thread, NULL, churn_pages, NULL))
        fail("thread");
    if (!has_redis)
        serve(listener);
    while (waitpid(child, NULL, 0) != child && errno == EINTR)
        ;
    fail("redis-server ended");
}
