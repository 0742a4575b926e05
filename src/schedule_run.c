/*
 * schedule_run.c
 *		Starts the sagas whose time has come.
 *
 * Coordinator 0 of a database knows when the next schedule is due, and has an
 * executor start it: checking an input may run code of its types, which a
 * coordinator must not.  A run's saga and the schedule's next time are written
 * by one transaction, and a key made of the schedule and the time stands by
 * that, so that each time is run once.  Held sagas hold the schedules, too:
 * their coordinator does not come to look.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "coordinator.h"
#include "schedule.h"
#include "spi_util.h"
#include "start.h"

/* A time that nobody was there for, or for this long, was missed. */
#define LATE			(60 * USECS_PER_SEC)

/* What one transaction does at most. */
#define MAX_SCHEDULES	100
#define MAX_STARTS		1000
#define MAX_TIMES		20000

/* Runs that wait for the one before them, of one schedule. */
#define MAX_QUEUED		1000

/* A schedule that somebody has locked is tried again after this. */
#define LOOK_AGAIN		USECS_PER_SEC

#define LOCK_TIMEOUT_MS	5000

/* ---------------------------------------------------------- one schedule */

/* A row of saga.schedule under work. */
typedef struct Schedule
{
	char	   *name;
	char	   *definition;
	Oid			owner;
	char	   *cron;
	Interval   *every;
	TimestampTz anchor;
	char	   *timezone;
	Jsonb	   *input;
	char	   *time_field;
	char		catch_up;		/* first letter of all, last, none */
	char		overlap;		/* of skip, queue, allow */
	TimestampTz next_at;
	int			nqueued;
	TimestampTz queued[MAX_QUEUED];
	bool		live;			/* its last saga has not ended */

	/* what came of it */
	bool		has_saga;
	pg_uuid_t	saga;
	TimestampTz last_at;
	int64		runs;
	int64		missed;
	char	   *error;			/* of the last time, NULL: none */
	bool		error_changed;
	bool		blocked;		/* a start has to be tried again later */
} Schedule;

typedef struct Batch
{
	TimestampTz now;
	TimestampTz alive_since;	/* from then on coordinator 0 has looked */
	int			starts;			/* left for this transaction */
	int			times;
} Batch;

static Jsonb *
labels_of(const Schedule *s, TimestampTz at)
{
	JsonbParseState *state = NULL;
	JsonbValue	text;
	char	   *words[4];

	words[0] = "schedule";
	words[1] = s->name;
	words[2] = "scheduled_for";
	words[3] = saga_schedule_time_text(at);
	text.type = jbvString;
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < 4; i++)
	{
		text.val.string.val = words[i];
		text.val.string.len = strlen(words[i]);
		pushJsonbValue(&state, i % 2 ? WJB_VALUE : WJB_KEY, &text);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* As the schedule's owner, whose rights are what they are now. */
static void
start_saga(Schedule *s, TimestampTz at)
{
	SagaStartOptions o = {0};
	SagaUserSwitch saved;
	Jsonb	   *input = saga_schedule_input(s->input, s->time_field, at);
	SagaTable  *instances = saga_table_open("instance", RowExclusiveLock);
	pg_uuid_t	id;

	saga_run_as_begin(s->owner, "pg_catalog", &saved);
	o.def = saga_definition_to_start(s->definition, 0);
	o.priority = o.def->priority;
	o.protocol = o.def->protocol;
	o.labels = labels_of(s, at);
	o.started_by = s->owner;
	if (saga_start_one(instances, &o, input,
					   cstring_to_text(psprintf("%s@%s", s->name, saga_schedule_time_text(at))), &id))
		s->runs++;
	s->saga = id;
	s->has_saga = true;
	s->last_at = at;
	saga_run_as_end(&saved);
	saga_table_close(instances);
}

/*
 * Start the run of one time.  An error is the schedule's, not the worker's:
 * it is kept, and the time counts as missed, unless it may go away by itself.
 * False: not now.
 */
static bool
run_at(Schedule *s, Batch *batch, TimestampTz at)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool again = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		start_saga(s, at);
		ReleaseCurrentSubTransaction();
		s->error = NULL;
		s->live = s->overlap != 'a';
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		s->error = psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
		again = saga_classify_sqlstate(unpack_sql_state(error->sqlerrcode), NULL) ==
			SAGA_ANSWER_TRANSIENT;
		if (!again)
			s->missed++;
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("schedule \"%s\" could not start saga \"%s\" for %s: %s",
						s->name, s->definition, saga_schedule_time_text(at), error->message)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	s->error_changed = true;
	s->blocked |= again;
	batch->starts--;
	return !again;
}

static bool
was_missed(const Batch *batch, TimestampTz at)
{
	return at < batch->alive_since || at < batch->now - LATE;
}

/* Shall a time that was missed be made up for? */
static bool
is_caught_up(const Schedule *s, const Batch *batch, TimestampTz next)
{
	if (s->catch_up == 'a')
		return true;
	return s->catch_up == 'l' && !(next <= batch->now && was_missed(batch, next));
}

/*
 * Times that have come, in order.  What overlaps waits in 'queued' or is left
 * out; what is made up for always waits, as leaving it out would not make up
 * for anything.
 */
static void
take_times(Schedule *s, Batch *batch)
{
	SagaTimes	times;

	saga_times_parse(&times, s->cron, s->every, s->anchor, s->timezone);
	while (s->next_at <= batch->now && batch->starts > 0 && batch->times-- > 0)
	{
		TimestampTz at = s->next_at;
		TimestampTz next = saga_times_next(&times, at);
		bool		missed = was_missed(batch, at);
		bool		busy = s->live || s->nqueued > 0;

		CHECK_FOR_INTERRUPTS();
		if (missed && !is_caught_up(s, batch, next))
			s->missed++;
		else if (!busy)
		{
			if (!run_at(s, batch, at))
				return;
		}
		else if (s->overlap == 's' && !missed)
			s->missed++;
		else if (s->nqueued < MAX_QUEUED)
			s->queued[s->nqueued++] = at;
		else
			return;				/* goes on when there is room */
		s->next_at = next;
	}
}

static void
work_on(Schedule *s, Batch *batch)
{
	int			taken = 0;

	while (taken < s->nqueued && !s->live && batch->starts > 0 &&
		   run_at(s, batch, s->queued[taken]))
		taken++;
	s->nqueued -= taken;
	memmove(s->queued, s->queued + taken, sizeof(TimestampTz) * s->nqueued);
	if (!s->blocked)
		take_times(s, batch);
}

/* ------------------------------------------------------------- the rows */

static Datum
column(int row, int col, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col, isnull);
}

static char *
text_column(int row, int col)
{
	bool		isnull;
	Datum		value = column(row, col, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static void
read_schedule(int row, Schedule *s)
{
	bool		isnull;
	Datum		value;
	Datum	   *queued;

	memset(s, 0, sizeof(*s));
	s->name = text_column(row, 1);
	s->definition = text_column(row, 2);
	s->owner = DatumGetObjectId(column(row, 3, &isnull));
	s->cron = text_column(row, 4);
	value = column(row, 5, &isnull);
	if (!isnull)
	{
		s->every = palloc(sizeof(Interval));
		*s->every = *DatumGetIntervalP(value);
	}
	s->anchor = DatumGetTimestampTz(column(row, 6, &isnull));
	s->timezone = text_column(row, 7);
	s->input = DatumGetJsonbPCopy(column(row, 8, &isnull));
	s->time_field = text_column(row, 9);
	s->catch_up = text_column(row, 10)[0];
	s->overlap = text_column(row, 11)[0];
	s->next_at = DatumGetTimestampTz(column(row, 12, &isnull));
	deconstruct_array(DatumGetArrayTypeP(column(row, 13, &isnull)), TIMESTAMPTZOID, 8, true,
					  TYPALIGN_DOUBLE, &queued, NULL, &s->nqueued);
	s->nqueued = Min(s->nqueued, MAX_QUEUED);
	for (int i = 0; i < s->nqueued; i++)
		s->queued[i] = DatumGetTimestampTz(queued[i]);
	s->live = s->overlap != 'a' && DatumGetBool(column(row, 14, &isnull));
}

static void
write_schedule(const Schedule *s)
{
	Oid			types[9] = {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZARRAYOID, UUIDOID,
	TIMESTAMPTZOID, INT8OID, INT8OID, TEXTOID, BOOLOID};
	Datum		values[9];
	char		nulls[10] = "         ";
	Datum		queued[MAX_QUEUED];

	for (int i = 0; i < s->nqueued; i++)
		queued[i] = TimestampTzGetDatum(s->queued[i]);
	values[0] = CStringGetTextDatum(s->name);
	values[1] = TimestampTzGetDatum(s->next_at);
	values[2] = PointerGetDatum(construct_array(queued, s->nqueued, TIMESTAMPTZOID, 8, true,
												TYPALIGN_DOUBLE));
	values[3] = UUIDPGetDatum(&s->saga);
	values[4] = TimestampTzGetDatum(s->last_at);
	if (!s->has_saga)
		nulls[3] = nulls[4] = 'n';
	values[5] = Int64GetDatum(s->runs);
	values[6] = Int64GetDatum(s->missed);
	nulls[7] = s->error ? ' ' : 'n';
	values[7] = s->error ? CStringGetTextDatum(s->error) : (Datum) 0;
	values[8] = BoolGetDatum(s->error_changed);
	if (SPI_execute_with_args("UPDATE saga.schedule SET next_at = $2, queued = $3,"
							  " last_saga = coalesce($4, last_saga), last_at = coalesce($5, last_at),"
							  " runs = runs + $6, missed = missed + $7,"
							  " error = CASE WHEN $9 THEN $8 ELSE error END WHERE name = $1",
							  9, types, values, nulls, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not update saga.schedule");
}

/* ----------------------------------------------------------- an executor */

/* When the coordinator that looks at schedules began to. */
static TimestampTz
looked_since(void)
{
	TimestampTz since = GetCurrentTimestamp();

	LWLockAcquire(&SagaShmem->lock, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (slot->kind == SAGA_WORKER_COORDINATOR && slot->dboid == MyDatabaseId &&
			slot->number == 0 && slot->ready)
			since = slot->ready_at;
	}
	LWLockRelease(&SagaShmem->lock);
	return since;
}

/* One transaction; true if there may be more to do. */
static bool
run_some(void)
{
	Batch		batch = {0};
	Oid			types[2] = {TIMESTAMPTZOID, INT4OID};
	Datum		values[2];
	Schedule  **due;
	int			n;

	batch.now = GetCurrentTimestamp();
	batch.alive_since = looked_since();
	batch.starts = MAX_STARTS;
	batch.times = MAX_TIMES;
	values[0] = TimestampTzGetDatum(batch.now);
	values[1] = Int32GetDatum(saga_origin());
	/* what somebody has locked is looked at later */
	if (SPI_execute_with_args("SELECT s.name, s.definition, s.owner::oid, s.cron, s.every, s.anchor, s.timezone,"
							  " s.input, s.time_field, s.catch_up, s.overlap, s.next_at, s.queued, l.live"
							  " FROM saga.schedule s CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM saga.instance i"
							  " WHERE i.id = s.last_saga AND i.ended_at IS NULL) AS live) l"
							  " WHERE s.origin = $2 AND (s.next_at <= $1 AND cardinality(s.queued) < 1000"
							  " OR cardinality(s.queued) > 0 AND (NOT l.live OR s.overlap = 'allow'))"
							  " ORDER BY s.next_at FOR UPDATE OF s SKIP LOCKED LIMIT 100",
							  2, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read saga.schedule");
	n = (int) SPI_processed;
	due = palloc(sizeof(Schedule *) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		due[i] = palloc(sizeof(Schedule));
		read_schedule(i, due[i]);
	}
	for (int i = 0; i < n && batch.starts > 0 && batch.times > 0; i++)
	{
		work_on(due[i], &batch);
		write_schedule(due[i]);
	}
	return n == MAX_SCHEDULES || batch.starts <= 0 || batch.times <= 0;
}

void
saga_schedules_run(void)
{
	volatile bool more = true;

	while (more)
	{
		MemoryContext context = CurrentMemoryContext;

		saga_worker_interrupts();
		PG_TRY();
		{
			if (!saga_worker_begin("starting scheduled sagas"))
				proc_exit(0);
			LockTimeout = LOCK_TIMEOUT_MS;
			more = run_some();
			LockTimeout = 0;
			saga_worker_commit(false);
		}
		PG_CATCH();
		{
			LockTimeout = 0;
			MemoryContextSwitchTo(context);
			EmitErrorReport();
			FlushErrorState();
			saga_worker_abort();
			more = false;
		}
		PG_END_TRY();
		MemoryContextSwitchTo(context);
	}
}

/* --------------------------------------------------------- coordinator 0 */

static TimestampTz next_look = 0;	/* at the start: at once */
static TimestampTz not_before = 0;	/* unless something changes */
static bool running = false;

void
saga_schedules_look(bool poll_tables)
{
	TimestampTz now = GetCurrentTimestamp();
	Oid			types[1] = {INT4OID};
	Datum		values[1];
	bool		changed;
	bool		isnull;
	Datum		first;

	if (running)
		return;
	changed = saga_schedules_changed();
	if (!changed && !poll_tables && now < next_look)
		return;
	saga_worker_look_again();	/* at what was announced */
	values[0] = Int32GetDatum(saga_origin());
	if (SPI_execute_with_args("SELECT min(CASE WHEN cardinality(s.queued) > 0 AND (s.overlap = 'allow' OR NOT EXISTS"
							  " (SELECT FROM saga.instance i WHERE i.id = s.last_saga AND i.ended_at IS NULL))"
							  " THEN '-infinity' WHEN cardinality(s.queued) < 1000 THEN s.next_at END)"
							  " FROM saga.schedule s WHERE s.origin = $1",
							  1, types, values, NULL, true, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read saga.schedule");
	first = column(0, 1, &isnull);
	next_look = isnull ? DT_NOEND : DatumGetTimestampTz(first);
	if (next_look > now)
		return;
	if (now < not_before && !changed)
	{
		next_look = not_before;
		return;
	}
	running = true;
	saga_dispatch_job(SAGA_HOOK_SCHEDULES);
}

/* What is due even now is locked by somebody, or cannot be started yet. */
void
saga_schedules_ran(void)
{
	running = false;
	next_look = 0;
	not_before = GetCurrentTimestamp() + LOOK_AGAIN;
}

TimestampTz
saga_schedules_due(void)
{
	return running ? DT_NOEND : next_look;
}
