/*
 * runs.c
 *		A coordinator's sagas: which are known, which are in memory, taking
 *		them in from their rows and logs, and their timers.
 *
 * Called by coordinator.c.  Owns the table of known sagas and the queues of
 * those to be taken in.  Decides nothing: events go to turn.c.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "coordinator.h"
#include "guc.h"

/* A saga whose work raised an error is tried again after this. */
#define SET_ASIDE_FOR	(10 * SAGA_SECOND)

/* Is its definition still paused? */
#define PAUSED_LOOK		(2 * SAGA_SECOND)

/* Ids in a ring that grows. */
typedef struct Queue
{
	SagaRingEntry *entries;
	int64		head;
	int64		tail;
	int64		size;
} Queue;

/*
 * Sagas by order, the first on top: one pointer for each, and in the saga its
 * place, for it may leave from the middle.
 */
typedef struct Heap
{
	Known	  **members;
	int			n,
				max;
	bool		by_arrival;		/* else by time */
} Heap;

/*
 * A definition with max_running: how many of its sagas run here, and those
 * that wait for one to end.  All versions of a name share one gate.
 */
typedef struct Gate
{
	char		name[NAMEDATALEN];	/* hash key; long names share by prefix */
	int			running;
	Queue		waiting;
} Gate;

pg_uuid_t	saga_current;
bool		saga_current_set = false;
bool		saga_found_foreign = false;

static MemoryContext runs_context;
static HTAB *known_sagas;
static int	loaded = 0;

static Heap timers;				/* by the next thing that is due */
static Heap arrivals;			/* sagas to be taken in, when there is room */
static HTAB *gates;
static List *recovered = NIL;	/* SagaOutcome, until their saga is taken in */

static Queue commands;			/* of the inbox; they need no room */

/* ------------------------------------------------------------- helpers */

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

/* Higher priority first, then the older one; or the one due earlier. */
static bool
goes_before(const Heap *heap, const Known *a, const Known *b)
{
	if (!heap->by_arrival)
		return a->due < b->due;
	if (a->priority != b->priority)
		return a->priority > b->priority;
	return memcmp(&a->id, &b->id, UUID_LEN) < 0;
}

static void
put_at(Heap *heap, int at, Known *known)
{
	heap->members[at] = known;
	if (heap->by_arrival)
		known->arrival_at = at;
	else
		known->timer_at = at;
}

/* Where a member that may be at the wrong place belongs. */
static void
heap_settle(Heap *heap, int at, Known *known)
{
	while (at > 0 && goes_before(heap, known, heap->members[(at - 1) / 2]))
	{
		put_at(heap, at, heap->members[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	for (;;)
	{
		int			child = 2 * at + 1;

		if (child + 1 < heap->n &&
			goes_before(heap, heap->members[child + 1], heap->members[child]))
			child++;
		if (child >= heap->n || !goes_before(heap, heap->members[child], known))
			break;
		put_at(heap, at, heap->members[child]);
		at = child;
	}
	put_at(heap, at, known);
}

static void
heap_add(Heap *heap, Known *known)
{
	if (heap->n == heap->max)
	{
		heap->max = Max(1024, heap->max + heap->max / 2);
		heap->members = heap->members ?
			repalloc_huge(heap->members, sizeof(Known *) * heap->max) :
			MemoryContextAllocHuge(runs_context, sizeof(Known *) * heap->max);
	}
	heap->n++;
	heap_settle(heap, heap->n - 1, known);
}

static void
heap_remove(Heap *heap, Known *known)
{
	int			at = heap->by_arrival ? known->arrival_at : known->timer_at;
	Known	   *last = heap->members[--heap->n];

	if (heap->by_arrival)
		known->arrival_at = -1;
	else
		known->timer_at = -1;
	if (last != known)
		heap_settle(heap, at, last);
}

void
saga_runs_init(void)
{
	HASHCTL		ctl;

	runs_context = AllocSetContextCreate(TopMemoryContext, "saga runs",
										 ALLOCSET_DEFAULT_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = UUID_LEN;
	ctl.entrysize = sizeof(Known);
	ctl.hcxt = runs_context;
	known_sagas = hash_create("known sagas", 1024, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	MemoryContextSwitchTo(runs_context);
	arrivals.by_arrival = true;
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = sizeof(Gate);
	gates = hash_create("saga gates", 64, &ctl, HASH_ELEM | HASH_STRINGS);
	saga_inbox_init();
	saga_turn_init();
	saga_calls_init();
}

Known *
saga_known(const pg_uuid_t *id, bool create)
{
	bool		found;
	Known	   *known = hash_search(known_sagas, id, create ? HASH_ENTER : HASH_FIND,
									&found);

	if (known && !found)
	{
		memset((char *) known + UUID_LEN, 0, sizeof(Known) - UUID_LEN);
		known->due = SAGA_NEVER;
		known->timer_at = known->arrival_at = -1;
	}
	return known;
}

void
saga_set_due(Known *known, SagaTime due)
{
	if (known->due == due && (known->timer_at >= 0) == (due != SAGA_NEVER))
		return;
	known->due = due;
	if (due == SAGA_NEVER)
	{
		if (known->timer_at >= 0)
			heap_remove(&timers, known);
	}
	else if (known->timer_at >= 0)
		heap_settle(&timers, known->timer_at, known);
	else
		heap_add(&timers, known);
}

/* Is it among the arrivals, or at its gate? */
static bool
is_queued(const Known *known)
{
	return known->arrival_at >= 0 || known->at_gate;
}

static void
dequeue(Known *known)
{
	/* a gate's queue holds ids, not pointers */
	if (known->arrival_at >= 0)
		heap_remove(&arrivals, known);
	known->at_gate = false;
}

void
saga_forget(Known *known)
{
	dequeue(known);
	saga_set_due(known, SAGA_NEVER);
	hash_search(known_sagas, &known->id, HASH_REMOVE, NULL);
}

static void
enqueue(Queue *queue, const pg_uuid_t *id, int64 inbox_id)
{
	SagaRingEntry *entry;

	if (queue->tail - queue->head == queue->size)
	{
		int64		size = Max(1024, queue->size * 2);
		SagaRingEntry *bigger = MemoryContextAllocHuge(runs_context,
													   sizeof(SagaRingEntry) * size);

		for (int64 i = queue->head; i < queue->tail; i++)
			bigger[i % size] = queue->entries[i % queue->size];
		if (queue->entries)
			pfree(queue->entries);
		queue->entries = bigger;
		queue->size = size;
	}
	entry = &queue->entries[queue->tail++ % queue->size];
	entry->saga_id = *id;
	entry->inbox_id = inbox_id;
}

void
saga_arrive(const pg_uuid_t *id, int64 inbox_id, int32 priority)
{
	Known	   *known;

	if (inbox_id != 0)
	{
		enqueue(&commands, id, inbox_id);
		return;
	}
	known = saga_known(id, true);
	if (known->run == NULL && !is_queued(known))
	{
		known->priority = priority;
		heap_add(&arrivals, known);
	}
}

/* Not in memory: look at it when 'due' comes. */
void
saga_sleeps(const pg_uuid_t *id, TimestampTz due)
{
	Known	   *known = saga_known(id, true);

	if (known->run || is_queued(known))
		return;
	known->has_wakeup = true;
	saga_set_due(known, due == DT_NOEND ? SAGA_NEVER : due);
}

bool
saga_arrivals_pending(void)
{
	return commands.head < commands.tail ||
		(arrivals.n > 0 && loaded < saga_max_running);
}

int
saga_runs_loaded(void)
{
	return loaded;
}

int64
saga_runs_known(void)
{
	return hash_get_num_entries(known_sagas);
}

static Gate *
gate_of(const SagaDefinition *def)
{
	char		name[NAMEDATALEN];
	Gate	   *gate;
	bool		found;

	if (def->max_running == 0)
		return NULL;
	strlcpy(name, def->name, sizeof(name));
	gate = hash_search(gates, name, HASH_ENTER, &found);
	if (!found)
	{
		gate->running = 0;
		memset(&gate->waiting, 0, sizeof(gate->waiting));
	}
	return gate;
}

/* Coordinators share a limit evenly; each lets at least one through. */
static bool
gate_is_full(const Gate *gate, const SagaDefinition *def)
{
	return gate->running >= Max(1, def->max_running / saga_coordinators);
}

static void
leave_gate(Gate *gate)
{
	gate->running--;
	while (gate->waiting.head < gate->waiting.tail)
	{
		SagaRingEntry entry = gate->waiting.entries[gate->waiting.head++ % gate->waiting.size];
		Known	   *known = saga_known(&entry.saga_id, false);

		if (known == NULL || !known->at_gate)
			continue;			/* cancelled meanwhile */
		dequeue(known);
		saga_arrive(&entry.saga_id, 0, known->priority);
		break;
	}
}

void
saga_run_free(SagaRun *run, bool forget)
{
	Known	   *known = run->known;

	saga_calls_forget_run(run);
	loaded--;
	known->run = NULL;
	if (run->gate)
		leave_gate(run->gate);
	MemoryContextDelete(run->context);
	if (forget)
		saga_forget(known);
}

/* -------------------------------------------------------- taking sagas in */

static SagaRun *
new_run(Known *known, const SagaInstanceRow *row, SagaDefinition *def,
		MemoryContext context)
{
	SagaRun    *run;
	SagaArena  *run_arena;
	MemoryContext old = MemoryContextSwitchTo(context);

	run = palloc0(sizeof(SagaRun));
	run->row = *row;
	run->context = context;
	run->def = def;
	run->known = known;
	run->change = -1;
	if (known->has_wakeup)
	{
		SagaWakeup *w = SAGA_APPEND(saga_turn.wakeups, saga_turn.nwakeups, saga_turn.maxwakeups);

		w->saga_id = row->id;
		w->due = 0;
		known->has_wakeup = false;
	}
	run->started_by = GetUserNameFromId(row->started_by, true);
	run_arena = palloc(sizeof(SagaArena));	/* the state grows in it */
	run_arena->alloc = arena_alloc;
	run_arena->context = context;
	run->state = saga_machine_create(def->graph,
									 row->deadline == DT_NOEND ? SAGA_NEVER : row->deadline,
									 run_arena);
	saga_run_grow(run);
	run->written_state = run->state->state;
	run->written_direction = run->state->direction;
	run->written_cause = run->state->cause;
	MemoryContextSwitchTo(old);
	known->run = run;
	dequeue(known);
	loaded++;
	run->gate = gate_of(def);
	if (run->gate)
		run->gate->running++;
	run->stuck_written = known->failures > 0;
	return run;
}

static void
replay(SagaRun *run, List *entries)
{
	ListCell   *cell;

	foreach(cell, entries)
	{
		SagaLogEntry *entry = lfirst(cell);

		if (!saga_log_apply(run->state, entry))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("record %d of the log of saga %s cannot follow the ones before it",
							entry->record.seq,
							DatumGetCString(DirectFunctionCall1(uuid_out,
																UUIDPGetDatum(&run->row.id)))),
					 errhint("Look at saga.log; saga.terminate() with force ends the saga.")));
		saga_remember_record(run, &entry->record, &entry->payload);
		if (entry->record.kind == SAGA_RECORD_STUCK)
			run->stuck_written = true;
	}
	run->written_state = run->state->state;
	run->written_direction = run->state->direction;
	run->written_cause = run->state->cause;
}

void
saga_recovered_outcomes(SagaOutcome *outcomes, int n)
{
	MemoryContext old = MemoryContextSwitchTo(runs_context);

	for (int i = 0; i < n; i++)
	{
		SagaOutcome *copy = palloc(sizeof(SagaOutcome));

		*copy = outcomes[i];
		if (copy->result)
		{
			copy->result = palloc(VARSIZE(outcomes[i].result));
			memcpy(copy->result, outcomes[i].result, VARSIZE(outcomes[i].result));
		}
		recovered = lappend(recovered, copy);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Local actions that are committed and not in this saga's log, as the machine
 * wants them before it resumes: actions, compensations, the ending action.
 * True if there were any.
 */
static bool
feed_recovered(SagaRun *run)
{
	static const char order[] = "ach";
	bool		any = false;

	if (run->known->outcomes_unread)
	{
		int			n;
		SagaOutcome *outcomes = saga_log_read_outcomes(UINT64CONST(1) << saga_bucket(&run->row.id),
													   &run->row.id, &n);

		saga_recovered_outcomes(outcomes, n);
		run->known->outcomes_unread = false;
	}
	for (const char *op = order; *op && recovered != NIL; op++)
	{
		ListCell   *cell;

		foreach(cell, recovered)
		{
			SagaOutcome *outcome = lfirst(cell);

			if (outcome->key.op != *op ||
				memcmp(&outcome->key.saga_id, &run->row.id, UUID_LEN) != 0)
				continue;
			recovered = foreach_delete_current(recovered, cell);
			saga_run_recovered(run, outcome);
			if (outcome->result)
				pfree(outcome->result);
			pfree(outcome);
			any = true;
		}
	}
	return any;
}

/*
 * Bring one saga into memory; NULL if it is no more, or not yet (*pending, may
 * be NULL, says so).
 */
SagaRun *
saga_take_in(Known *known, SagaAdmission how, bool *pending)
{
	MemoryContext context = AllocSetContextCreate(runs_context, "saga",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaInstanceRow row;
	SagaDefinition *def;
	SagaRun    *run;
	SagaEvent	event;

	if (!saga_log_read_instance(&known->id, &row))
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		saga_forget(known);
		return NULL;
	}
	MemoryContextSwitchTo(old);
	if (row.origin != saga_origin())
	{
		/* restored from a dump after we had started: not ours to run */
		saga_found_foreign = true;
		MemoryContextDelete(context);
		return NULL;
	}
	if (pending)
		*pending = row.state == SAGA_PENDING;
	if (row.state == SAGA_PENDING && how == SAGA_ADMIT_LETTER)
	{
		MemoryContextDelete(context);
		return NULL;
	}
	if (row.state == SAGA_PENDING && row.start_at > saga_now() && how == SAGA_ADMIT_START)
	{
		saga_set_due(known, row.start_at);
		MemoryContextDelete(context);
		return NULL;
	}
	def = saga_definition_by_id(row.definition_id);
	if (def == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("definition " INT64_FORMAT " does not exist", row.definition_id)));
	if (row.two_phase)
		def = def->two_phase;
	if (row.state == SAGA_PENDING && how == SAGA_ADMIT_START)
	{
		Gate	   *gate = gate_of(def);

		if (def->paused || (gate && gate_is_full(gate, def)))
		{
			MemoryContextDelete(context);
			if (def->paused)
				saga_set_due(known, saga_now() + PAUSED_LOOK);
			else
			{
				known->at_gate = true;
				enqueue(&gate->waiting, &known->id, 0);
			}
			return NULL;
		}
	}
	run = new_run(known, &row, def, context);
	if (row.state != SAGA_PENDING)
	{
		/* read in the turn's memory: what is of use is copied */
		replay(run, saga_log_read(&known->id));
		run->holds = true;		/* what its executors said is not known */
	}
	if (SAGA_STATE_ENDED(run->state->state))
	{
		if (how == SAGA_ADMIT_ENDED)
			return run;
		saga_run_free(run, true);
		return NULL;
	}
	run->state->clean = known->clean;
	known->clean = false;
	if (!feed_recovered(run) && run->state->seq == 0)
	{
		if (how != SAGA_ADMIT_START)
			return run;			/* the command comes first */
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_START;
		event.node = SAGA_NO_NODE;
		saga_run_feed(run, &event, NULL);
		if (def->graph->nsignals > 0)
			saga_inbox_reread(&known->id);
	}
	else if (!SAGA_STATE_ENDED(run->state->state))
		saga_run_resume(run);
	return run;
}

static bool
is_ours(uint64 buckets, const pg_uuid_t *id)
{
	return (buckets & (UINT64CONST(1) << saga_bucket(id))) != 0;
}

void
saga_runs_command(uint64 buckets, int max)
{
	while (max-- > 0 && commands.head < commands.tail)
	{
		SagaRingEntry entry = commands.entries[commands.head++ % commands.size];

		saga_current = entry.saga_id;
		saga_current_set = true;
		if (is_ours(buckets, &entry.saga_id))
			saga_inbox_take(entry.inbox_id);
	}
	saga_current_set = false;
}

void
saga_runs_admit(uint64 buckets, int max)
{
	while (max-- > 0 && arrivals.n > 0 && loaded < saga_max_running)
	{
		Known	   *known = arrivals.members[0];

		dequeue(known);
		saga_current = known->id;
		saga_current_set = true;
		if (!is_ours(buckets, &known->id))
			saga_forget(known);
		else if (known->run == NULL)
			(void) saga_take_in(known, SAGA_ADMIT_START, NULL);
	}
	saga_current_set = false;
}

void
saga_runs_timers(SagaTime now)
{
	while (timers.n > 0)
	{
		Known	   *known = timers.members[0];
		SagaEvent	event;

		if (known->due > now)
			break;
		saga_set_due(known, SAGA_NEVER);
		if (known->run == NULL)
		{
			saga_arrive(&known->id, 0, known->priority);
			continue;
		}
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_TIMER;
		event.node = SAGA_NO_NODE;
		saga_run_feed(known->run, &event, NULL);
		if (known->due <= now)
			saga_set_due(known, now + SAGA_SECOND / 20);	/* nothing came of it */
	}
}

SagaTime
saga_runs_next_due(void)
{
	return timers.n > 0 ? timers.members[0]->due : SAGA_NEVER;
}

/* ------------------------------------------------------- what went wrong */

/*
 * Work on this saga raised an error.  Nothing of it that is not written counts
 * any more: it is dropped from the turn and from memory, and taken in again
 * from its log later.  The others go on.
 */
void
saga_run_set_aside(const pg_uuid_t *id, const ErrorData *error)
{
	Known	   *known = saga_known(id, true);
	SagaStuckChange *stuck;

	saga_turn_drop(id, known->run);
	if (known->run)
		saga_run_free(known->run, false);
	known->outcomes_unread = true;
	known->failures = Min(known->failures + 1, PG_INT16_MAX);
	saga_set_due(known, saga_now() + SET_ASIDE_FOR);

	stuck = SAGA_APPEND(saga_turn.stuck, saga_turn.nstuck, saga_turn.maxstuck);
	memset(stuck, 0, sizeof(*stuck));
	stuck->saga_id = *id;
	stuck->stuck = true;
	stuck->reason = "error";
	stuck->sqlstate = MemoryContextStrdup(saga_turn_context, unpack_sql_state(error->sqlerrcode));
	stuck->message = MemoryContextStrdup(saga_turn_context, error->message);
	stuck->since = saga_now();
	saga_turn_flush = true;
}
