/*
 * runs.c
 *		A coordinator's sagas: which are known, which are in memory, taking
 *		them in from their rows and logs, their timers, and operators' verbs.
 *
 * Called by coordinator.c.  Owns the table of known sagas and the queues of
 * those to be taken in.  Decides nothing: events go to turn.c.
 */
#include "postgres.h"

#include "lib/pairingheap.h"
#include "utils/acl.h"
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
static pairingheap *timers;
static int	loaded = 0;

static pairingheap *arrivals;	/* sagas to be taken in, when there is room */
static HTAB *gates;
static List *recovered = NIL;	/* SagaOutcome, until their saga is taken in */
static void forget_taken_commands(void);

static Queue commands;			/* of the inbox; they need no room */
static HTAB *taken_commands;	/* ids of those taken, until their rows are gone */

/* ------------------------------------------------------------- helpers */

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Known *ka = pairingheap_const_container(Known, node, a);
	const Known *kb = pairingheap_const_container(Known, node, b);

	return ka->due < kb->due ? 1 : ka->due > kb->due ? -1 : 0;
}

/* Higher priority first, then the older one. */
static int
compare_arrival(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Known *ka = pairingheap_const_container(Known, arrival, a);
	const Known *kb = pairingheap_const_container(Known, arrival, b);

	if (ka->priority != kb->priority)
		return ka->priority > kb->priority ? 1 : -1;
	return memcmp(&kb->id, &ka->id, UUID_LEN);
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
	timers = pairingheap_allocate(compare_due, NULL);
	arrivals = pairingheap_allocate(compare_arrival, NULL);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = sizeof(Gate);
	gates = hash_create("saga gates", 64, &ctl, HASH_ELEM | HASH_STRINGS);
	forget_taken_commands();
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
	}
	return known;
}

void
saga_set_due(Known *known, SagaTime due)
{
	if (known->due == due && known->in_heap == (due != SAGA_NEVER))
		return;
	if (known->in_heap)
		pairingheap_remove(timers, &known->node);
	known->due = due;
	known->in_heap = due != SAGA_NEVER;
	if (known->in_heap)
		pairingheap_add(timers, &known->node);
}

static void
dequeue(Known *known)
{
	/* a gate's queue holds ids, not pointers */
	if (known->queued && !known->at_gate)
		pairingheap_remove(arrivals, &known->arrival);
	known->queued = false;
	known->at_gate = false;
}

static void
forget_known(Known *known)
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
	if (known->run == NULL && !known->queued)
	{
		known->queued = true;
		known->priority = priority;
		pairingheap_add(arrivals, &known->arrival);
	}
}

/* Not in memory: look at it when 'due' comes. */
void
saga_sleeps(const pg_uuid_t *id, TimestampTz due)
{
	Known	   *known = saga_known(id, true);

	if (known->run || known->queued)
		return;
	known->has_wakeup = true;
	saga_set_due(known, due == DT_NOEND ? SAGA_NEVER : due);
}

bool
saga_arrivals_pending(void)
{
	return commands.head < commands.tail ||
		(!pairingheap_is_empty(arrivals) && loaded < saga_max_running);
}

int
saga_runs_loaded(void)
{
	return loaded;
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

		if (known == NULL || !known->queued)
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
		forget_known(known);
}

const char *
saga_step_name(const SagaRun *run, int node)
{
	if (node == SAGA_NODE_END)
		return "$end";
	if (node == SAGA_NODE_ON_STUCK)
		return "$on_stuck";
	if (node >= 0 && node < run->def->graph->nnodes)
		return run->def->graph->nodes[node].name;
	return NULL;
}

int
saga_node_of_step(void *arg, const char *step)
{
	SagaDefinition *def = arg;

	if (strcmp(step, "$end") == 0)
		return SAGA_NODE_END;
	if (strcmp(step, "$on_stuck") == 0)
		return SAGA_NODE_ON_STUCK;
	return saga_definition_node(def, step);
}

/* -------------------------------------------------------- taking sagas in */

static SagaRun *
new_run(Known *known, const SagaInstanceRow *row, SagaDefinition *def,
		MemoryContext context)
{
	SagaRun    *run;
	SagaArena	arena;
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
	run->results = palloc0(sizeof(Jsonb *) * Max(def->graph->nnodes, 1));
	run->started_by = GetUserNameFromId(row->started_by, true);
	arena.alloc = arena_alloc;
	arena.context = context;
	run->state = saga_machine_create(def->graph,
									 row->deadline == DT_NOEND ? SAGA_NEVER : row->deadline,
									 &arena);
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

		if (!saga_machine_apply(run->state, &entry->record))
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
 * Bring one saga into memory; NULL if it is no more, or not yet: a command
 * (at_once) does not wait for a definition's limit or pause.
 */
static SagaRun *
take_in(Known *known, bool at_once)
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
		forget_known(known);
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
	if (row.state == SAGA_PENDING && row.start_at > saga_now() && !at_once)
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
	if (row.state == SAGA_PENDING && !at_once)
	{
		Gate	   *gate = gate_of(def);

		if (def->paused || (gate && gate_is_full(gate, def)))
		{
			MemoryContextDelete(context);
			if (def->paused)
				saga_set_due(known, saga_now() + PAUSED_LOOK);
			else
			{
				known->queued = known->at_gate = true;
				enqueue(&gate->waiting, &known->id, 0);
			}
			return NULL;
		}
	}
	run = new_run(known, &row, def, context);
	if (row.state != SAGA_PENDING)
	{
		List	   *entries = saga_log_read(&known->id, saga_node_of_step, def);

		replay(run, entries);
		list_free_deep(entries);
		run->holds = true;		/* what its executors said is not known */
	}
	if (SAGA_STATE_ENDED(run->state->state))
	{
		saga_run_free(run, true);
		return NULL;
	}
	run->state->clean = known->clean;
	known->clean = false;
	if (!feed_recovered(run) && run->state->seq == 0)
	{
		if (at_once)
			return run;			/* the command comes first */
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_START;
		event.node = SAGA_NO_NODE;
		saga_run_feed(run, &event, NULL);
	}
	else if (!SAGA_STATE_ENDED(run->state->state))
		saga_run_resume(run);
	return run;
}

static SagaVerb
verb_of(const char *name)
{
	for (int v = SAGA_VERB_CANCEL; v <= SAGA_VERB_SKIP_STEP; v++)
		if (strcmp(saga_verb_name(v), name) == 0)
			return v;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("unknown verb \"%s\" in saga.inbox", name)));
}

/*
 * Terminate by force a saga that cannot be taken in (its log is damaged, its
 * definition does not compile): its row and one record say so.
 */
static void
end_unreadable(Known *known, const SagaInboxRow *inbox)
{
	SagaLogEntry *entry = SAGA_APPEND(saga_turn.entries, saga_turn.nentries,
									  saga_turn.maxentries);
	SagaInstanceChange *change = SAGA_APPEND(saga_turn.changes, saga_turn.nchanges,
											 saga_turn.maxchanges);
	SagaStuckChange *stuck = SAGA_APPEND(saga_turn.stuck, saga_turn.nstuck,
										 saga_turn.maxstuck);
	TimestampTz now = saga_now();

	memset(entry, 0, sizeof(*entry));
	entry->saga_id = known->id;
	entry->at = now;
	entry->record.seq = saga_log_last_seq(&known->id) + 1;
	entry->record.kind = SAGA_RECORD_ENDED;
	entry->record.state = SAGA_TERMINATED;
	entry->record.cause = SAGA_CAUSE_OPERATOR;
	entry->record.node = SAGA_NO_NODE;
	entry->payload.actor = MemoryContextStrdup(saga_turn_context, inbox->actor);
	entry->payload.note = inbox->note ? MemoryContextStrdup(saga_turn_context, inbox->note) : NULL;
	memset(change, 0, sizeof(*change));
	change->id = known->id;
	change->state = SAGA_TERMINATED;
	change->cause = SAGA_CAUSE_OPERATOR;
	change->ended_at = now;
	change->holds = true;
	memset(stuck, 0, sizeof(*stuck));
	stuck->saga_id = known->id;
	forget_known(known);
}

static void
forget_taken_commands(void)
{
	HASHCTL		ctl;

	if (taken_commands)
		hash_destroy(taken_commands);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = ctl.entrysize = sizeof(int64);
	taken_commands = hash_create("saga commands taken", 64, &ctl, HASH_ELEM | HASH_BLOBS);
}

/* The turn is written, and with it the rows of its commands are gone. */
void
saga_commands_written(void)
{
	if (hash_get_num_entries(taken_commands) > 0)
		forget_taken_commands();
}

/* A command that raised an error stays in the inbox for the next safety poll. */
static void
consumed(int64 inbox_id)
{
	(void) hash_search(taken_commands, &inbox_id, HASH_ENTER, NULL);
	*SAGA_APPEND(saga_turn.inbox, saga_turn.ninbox, saga_turn.maxinbox) = inbox_id;
	if (saga_turn_since == 0)
		saga_turn_since = saga_now();
	saga_turn_flush = true;
}

static void
consume_inbox(int64 id)
{
	SagaInboxRow row;
	Known	   *known;
	SagaRun    *run;
	SagaEvent	event;
	SagaPayload *payload;

	/* a ring and a scan may both have told of it */
	if (hash_search(taken_commands, &id, HASH_FIND, NULL) ||
		!saga_log_read_inbox(id, &row))
		return;
	known = saga_known(&row.saga_id, true);
	if (known->run == NULL && known->failures > 0 && row.force &&
		verb_of(row.verb) == SAGA_VERB_TERMINATE)
	{
		end_unreadable(known, &row);
		consumed(id);
		return;
	}
	run = known->run ? known->run : take_in(known, true);
	if (run == NULL)
	{
		consumed(id);
		return;
	}
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_VERB;
	event.verb = verb_of(row.verb);
	event.force = row.force;
	event.node = row.step == NULL ? SAGA_NO_NODE :
		row.step[0] == '#' ? atoi(row.step + 1) :	/* ours: no name begins so */
		saga_node_of_step(run->def, row.step);
	payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
	payload->actor = MemoryContextStrdup(saga_turn_context, row.actor);
	payload->note = row.note ? MemoryContextStrdup(saga_turn_context, row.note) : NULL;
	if (event.verb == SAGA_VERB_SKIP_STEP && row.result)
		payload->result = saga_keep_result(run, row.result);
	saga_run_feed(run, &event, payload);
	consumed(id);
	if (run->state->seq == 0)
	{
		/* nothing came of it: the saga waits for its start as before */
		int32		priority = known->priority;

		saga_turn_drop(&known->id, run);
		saga_run_free(run, false);
		saga_arrive(&known->id, 0, priority);
	}
}

static bool
is_ours(uint64 buckets, const pg_uuid_t *id)
{
	return (buckets & (UINT64CONST(1) << saga_bucket(id))) != 0;
}

void
saga_runs_admit(uint64 buckets, int max)
{
	while (max-- > 0 && saga_arrivals_pending())
	{
		SagaRingEntry entry;
		Known	   *known;

		if (commands.head < commands.tail)
		{
			entry = commands.entries[commands.head++ % commands.size];
			saga_current = entry.saga_id;
			saga_current_set = true;
			if (is_ours(buckets, &entry.saga_id))
				consume_inbox(entry.inbox_id);
			continue;
		}
		known = pairingheap_container(Known, arrival, pairingheap_remove_first(arrivals));
		saga_current = known->id;
		saga_current_set = true;
		known->queued = false;
		if (!is_ours(buckets, &known->id))
			forget_known(known);
		else if (known->run == NULL)
			(void) take_in(known, false);
	}
	saga_current_set = false;
}

void
saga_runs_timers(SagaTime now)
{
	while (!pairingheap_is_empty(timers))
	{
		Known	   *known = pairingheap_container(Known, node, pairingheap_first(timers));
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
	if (pairingheap_is_empty(timers))
		return SAGA_NEVER;
	return pairingheap_container(Known, node, pairingheap_first(timers))->due;
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
	known->failures++;
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
