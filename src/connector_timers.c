/*
 * connector_timers.c
 *		What the connectors have to do at a time.
 *
 * Owns the heap of set timers; the timers are parts of what they are for.
 * Used by connector.c, which runs what is due, and by the connectors.  Raises
 * no error and allocates nothing after its start, so that callbacks of
 * libraries may set timers.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "connector_internal.h"

static pairingheap *timers = NULL;

static int
compare_timers(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const SagaTimer *ta = pairingheap_const_container(SagaTimer, node, a);
	const SagaTimer *tb = pairingheap_const_container(SagaTimer, node, b);

	/* a pairing heap has its greatest on top: turn the order round */
	return ta->due < tb->due ? 1 : ta->due > tb->due ? -1 : 0;
}

void
saga_timer_clear(SagaTimer *timer)
{
	if (timer->due == 0)
		return;
	pairingheap_remove(timers, &timer->node);
	timer->due = 0;
}

void
saga_timer_set(SagaTimer *timer, SagaTime due, void (*fire) (SagaTimer *timer))
{
	saga_timer_clear(timer);
	timer->due = Max(due, 1);
	timer->fire = fire;
	pairingheap_add(timers, &timer->node);
}

/* Due when, at the earliest?  NEVER: none is set. */
SagaTime
saga_timers_next_due(void)
{
	if (timers == NULL || pairingheap_is_empty(timers))
		return SAGA_NEVER;
	return pairingheap_container(SagaTimer, node, pairingheap_first(timers))->due;
}

/* Fire what is due; true if anything was. */
bool
saga_timers_run(SagaTime now)
{
	bool		any = false;

	while (!pairingheap_is_empty(timers))
	{
		SagaTimer  *timer = pairingheap_container(SagaTimer, node,
												  pairingheap_first(timers));

		if (timer->due > now)
			break;
		saga_timer_clear(timer);
		timer->fire(timer);
		any = true;
	}
	return any;
}

/* The heap lives, and is gone, with the context. */
void
saga_timers_begin(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	timers = pairingheap_allocate(compare_timers, NULL);
	MemoryContextSwitchTo(old);
}

void
saga_timers_end(void)
{
	timers = NULL;
}
