/*
 * tcgshim.so: lets an unmodified QEMU 7.2 be a COLO primary under TCG.
 *
 *     LD_PRELOAD=tcgshim.so qemu-system-x86_64 -accel tcg ...
 *
 * For test machines without a KVM that boots a stock kernel, and nothing else.
 * Under KVM the code described here never runs, and the shim must stay away.
 *
 * What goes wrong
 *
 * At each checkpoint COLO synchronises the dirty bitmap, from its own thread and
 * without the big QEMU lock (BQL). KVM answers that with an ioctl. TCG registers
 * a log_global_after_sync hook, which asks every vCPU to run an empty function, to
 * be sure that its writes are in:
 *
 *     colo thread: memory_global_after_dirty_log_sync
 *       -> do_run_on_cpu(cpu, ..., mutex = &qemu_global_mutex)
 *            queue the work, kick the vCPU, then
 *            while (!done)
 *                qemu_cond_wait(&qemu_work_cond, mutex);
 *
 * do_run_on_cpu is written for callers that hold the BQL. COLO does not, so:
 *
 *  1. The thread waits on a mutex it does not own. When the wait ends, the C
 *     library locks that mutex on the thread's behalf, and nobody will ever unlock
 *     it: COLO believes that it holds no lock, and next it locks the BQL itself.
 *     Self-deadlock, at the first checkpoint, every time.
 *
 *  2. "Check `done`, then wait" is atomic against the vCPU's "set `done`, then
 *     signal" only because both hold the BQL. Without it the signal can come in
 *     between and is lost. The thread sleeps for ever, now and then.
 *
 * What the shim does
 *
 * It replaces pthread_cond_wait (all of QEMU's condition waits come through it):
 *
 *  1. If the calling thread does not own the mutex, lock it for the duration of
 *     the wait and unlock it afterwards. So the thread leaves owning exactly what
 *     it owned when it came.
 *
 *  2. Wait only for a limited time, and then return as if woken. POSIX allows
 *     spurious wake-ups, so every correct caller checks its condition in a loop.
 *     A lost signal thus costs a delay, not a hang: half a millisecond where the
 *     mutex was not owned, 10 ms elsewhere (kicks to idle vCPUs have been seen to
 *     get lost there too, as a consequence of the same race).
 *
 * The owner of a mutex is read from glibc's internals (__data.__owner is the
 * owner's thread id). That is not an interface, but it has been so since NPTL
 * began; the self-test next to this file fails if it ever changes.
 *
 * The price: idle threads wake 100 times a second, and spurious wake-ups are
 * frequent. Fine for a test, no good for anything else.
 *
 * The other defect of TCG in 7.2, losing dirty pages in the fast path of the
 * bitmap synchronisation, is avoided on QEMU's command line: testing/guests/README.md.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    NOT_OWNED_WAIT_NS = 500 * 1000,
    OWNED_WAIT_NS = 10 * 1000 * 1000,
    SECOND_NS = 1000 * 1000 * 1000,
};

typedef int timedwait_function(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

static timedwait_function *real_timedwait;

/*
 * Old symbol versions of the condition functions have a different layout of
 * pthread_cond_t, and plain dlsym may hand out the oldest. Ask for the current one.
 */
__attribute__((constructor)) static void find_timedwait(void)
{
    *(void **)&real_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_timedwait)
        *(void **)&real_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    if (!real_timedwait)
        abort();
}

static int own_thread_id(void)
{
    static __thread int id;

    if (!id)
        id = (int)syscall(SYS_gettid);
    return id;
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    int owned = mutex->__data.__owner == own_thread_id();
    struct timespec until;

    if (!owned)
        pthread_mutex_lock(mutex);

    /* QEMU's conditions use the default clock, so deadlines are in real time. */
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += owned ? OWNED_WAIT_NS : NOT_OWNED_WAIT_NS;
    if (until.tv_nsec >= SECOND_NS) {
        until.tv_nsec -= SECOND_NS;
        until.tv_sec++;
    }
    real_timedwait(condition, mutex, &until);

    if (!owned)
        pthread_mutex_unlock(mutex);
    return 0; /* timed out or not: a wake-up, perhaps spurious */
}
