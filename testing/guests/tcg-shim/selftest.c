/*
 * Checks tcgshim.so as QEMU would use it; run with the shim preloaded.
 *
 * Without the shim the first wait fails and the last one hangs; the alarm turns a
 * hang into a failure.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t mutex;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

static void check(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "tcgshim self-test: failed: %s\n", what);
        exit(1);
    }
}

int main(void)
{
    pthread_mutexattr_t attributes;

    /* An error-checking mutex knows its owner and says so. */
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&mutex, &attributes);
    alarm(5);

    /* COLO's case: not owned, and nobody will ever signal. */
    check(pthread_cond_wait(&condition, &mutex) == 0, "a wait without the mutex returns");
    check(pthread_mutex_unlock(&mutex) == EPERM, "a wait without the mutex leaves it free");

    /* The usual case: owned before, so owned after. */
    pthread_mutex_lock(&mutex);
    check(pthread_cond_wait(&condition, &mutex) == 0, "a wait with the mutex returns");
    check(pthread_mutex_unlock(&mutex) == 0, "a wait with the mutex keeps it");
    return 0;
}
