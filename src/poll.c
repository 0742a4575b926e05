/*
 * poll.c
 *		The one point where a coordinator (or an executor) waits.
 *
 * Owns the process's epoll descriptor, nested in one wait-event set next to
 * the latch and postmaster death: so sockets come and go without rebuilding
 * the set.  Used by the connectors for their sockets and by the worker's main
 * loop to wait.  Knows nothing of what the sockets are for; must not touch
 * connections, tables or transactions.
 */
#include "postgres.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "connector.h"

#define MAX_EVENTS	64

static int	epoll_fd = -1;
static WaitEventSet *wait_set = NULL;
static long (*before_wait) (void) = NULL;

/*
 * The events being dispatched.  A handler may remove any entry, even one whose
 * event is still to come: saga_poll_remove() takes it out of here.
 */
static struct epoll_event batch[MAX_EVENTS];
static int	batch_size = 0;

void
saga_poll_init(void)
{
	if (wait_set != NULL)
		return;
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not reserve a file descriptor"),
				 errhint("Increase max_files_per_process.")));
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not create an epoll descriptor: %m")));
	wait_set = saga_create_wait_event_set(TopMemoryContext, 3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, epoll_fd, NULL, NULL);
}

static void
set_events(SagaPollEntry *entry, struct epoll_event *event)
{
	memset(event, 0, sizeof(*event));
	event->data.ptr = entry;
	if (entry->events & SAGA_POLL_READ)
		event->events |= EPOLLIN;
	if (entry->events & SAGA_POLL_WRITE)
		event->events |= EPOLLOUT;
}

bool
saga_poll_try_add(SagaPollEntry *entry)
{
	struct epoll_event event;

	set_events(entry, &event);
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, entry->fd, &event) == 0;
}

void
saga_poll_add(SagaPollEntry *entry)
{
	saga_poll_init();
	if (!saga_poll_try_add(entry))
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not watch a socket: %m")));
}

bool
saga_poll_try_modify(SagaPollEntry *entry, uint32 events)
{
	struct epoll_event event;

	entry->events = events;
	set_events(entry, &event);
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, entry->fd, &event) == 0)
		return true;

	/*
	 * A library may have closed its socket, which took it off the list, and
	 * opened another with the same number.
	 */
	return errno == ENOENT &&
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, entry->fd, &event) == 0;
}

void
saga_poll_modify(SagaPollEntry *entry, uint32 events)
{
	if (!saga_poll_try_modify(entry, events))
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not watch a socket: %m")));
}

void
saga_poll_remove(SagaPollEntry *entry)
{
	/* fails where the socket is closed already: nothing is left to be done */
	if (entry->fd >= 0)
		(void) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, entry->fd, NULL);
	entry->fd = -1;
	for (int i = 0; i < batch_size; i++)
	{
		if (batch[i].data.ptr == entry)
			batch[i].data.ptr = NULL;
	}
}

void
saga_poll_before_wait(long (*hook) (void))
{
	before_wait = hook;
}

static void
dispatch(void)
{
	int			n = epoll_wait(epoll_fd, batch, MAX_EVENTS, 0);

	batch_size = Max(n, 0);
	PG_TRY();
	{
		for (int i = 0; i < batch_size; i++)
		{
			SagaPollEntry *entry = batch[i].data.ptr;
			uint32		events = 0;

			if (entry == NULL)
				continue;
			if (batch[i].events & EPOLLIN)
				events |= SAGA_POLL_READ;
			if (batch[i].events & EPOLLOUT)
				events |= SAGA_POLL_WRITE;
			/* errors are found by whoever reads or writes */
			if (batch[i].events & (EPOLLERR | EPOLLHUP))
				events |= entry->events;
			batch[i].data.ptr = NULL;
			entry->ready(entry, events);
		}
	}
	PG_FINALLY();
	{
		batch_size = 0;
	}
	PG_END_TRY();
}

bool
saga_poll_wait(long timeout_ms, uint32 wait_event)
{
	WaitEvent	events[3];
	bool		latch_set = false;
	int			n;

	saga_poll_init();
	if (before_wait)
	{
		long		limit = before_wait();

		if (limit >= 0 && (timeout_ms < 0 || limit < timeout_ms))
			timeout_ms = limit;
	}

	n = WaitEventSetWait(wait_set, timeout_ms, events, lengthof(events),
						 wait_event);
	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			latch_set = true;
		}
	}

	/*
	 * A set latch hides the sockets' event from the wait, and a busy latch
	 * must not starve them.
	 */
	dispatch();
	return latch_set;
}
