/*
 * schedule.c
 *		saga.schedule() and saga.unschedule(), and the times of a schedule.
 *
 * Runs in sessions; the times are computed in executors, too.  Writes
 * saga.schedule, as schedule_run.c does.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"

#include "compat.h"
#include "define.h"
#include "log.h"
#include "rights.h"
#include "saga.h"
#include "schedule.h"
#include "spi_util.h"
#include "start.h"

#define MAX_NAME_BYTES	200

PG_FUNCTION_INFO_V1(saga_schedule);
PG_FUNCTION_INFO_V1(saga_unschedule);
PG_FUNCTION_INFO_V1(saga_cron_next_time);

/* ------------------------------------------------------------- its times */

/* About how long an interval is, in microseconds. */
static double
interval_length(const Interval *every)
{
	return (double) every->time +
		(every->day + every->month * 30.436875) * (double) USECS_PER_DAY;
}

void
saga_times_parse(SagaTimes *times, const char *cron, const Interval *every,
				 TimestampTz anchor, const char *zone)
{
	memset(times, 0, sizeof(*times));
	times->zone = saga_time_zone(zone);
	times->anchor = anchor;
	times->by_cron = cron != NULL;
	if (cron)
		saga_cron_parse(cron, &times->cron);
	else
	{
		times->every = *every;
		if (every->month < 0 || every->day < 0 || every->time < 0 ||
			interval_length(every) < USECS_PER_SEC)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a schedule's interval must be one second or longer")));
	}
}

/* The n-th time after the anchor; days and months are those of the calendar. */
static TimestampTz
nth_time(const SagaTimes *times, int64 n)
{
	Interval	step = {0};
	Timestamp	local;

	if (times->every.month == 0 && times->every.day == 0)
		return times->anchor + n * times->every.time;
	step.month = (int32) (n * times->every.month);
	step.day = (int32) (n * times->every.day);
	local = DatumGetTimestamp(DirectFunctionCall2(timestamp_pl_interval,
												  TimestampGetDatum(saga_local_time(times->anchor, times->zone)),
												  IntervalPGetDatum(&step)));
	return saga_local_instant(local, times->zone) + n * times->every.time;
}

TimestampTz
saga_times_next(const SagaTimes *times, TimestampTz after)
{
	double		length;
	int64		n;

	if (times->by_cron)
		return saga_cron_next(&times->cron, times->zone, after);
	length = interval_length(&times->every);
	n = Max(1, (int64) ((double) (after - times->anchor) / length));
	while (n > 1 && nth_time(times, n - 1) > after)
		n--;
	while (nth_time(times, n) <= after)
		n++;
	return nth_time(times, n);
}

char *
saga_schedule_time_text(TimestampTz at)
{
	struct pg_tm tm;
	fsec_t		fsec;
	int			us;
	char	   *text;

	if (timestamp2tm(at, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	us = fsec;
	text = psprintf("%04d-%02d-%02dT%02d:%02d:%02d", tm.tm_year, tm.tm_mon, tm.tm_mday,
					tm.tm_hour, tm.tm_min, tm.tm_sec);
	return us == 0 ? psprintf("%sZ", text) : psprintf("%s.%06dZ", text, us);
}

Jsonb *
saga_schedule_input(Jsonb *input, const char *time_field, TimestampTz at)
{
	JsonbParseState *state = NULL;
	JsonbValue	key;
	JsonbValue	value;
	JsonbValue *object;
	Jsonb	   *field;

	if (time_field == NULL)
		return input;
	key.type = value.type = jbvString;
	key.val.string.val = unconstify(char *, time_field);
	key.val.string.len = strlen(time_field);
	value.val.string.val = saga_schedule_time_text(at);
	value.val.string.len = strlen(value.val.string.val);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	pushJsonbValue(&state, WJB_KEY, &key);
	pushJsonbValue(&state, WJB_VALUE, &value);
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	field = JsonbValueToJsonb(object);
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(input),
											  JsonbPGetDatum(field)));
}

/* --------------------------------------------------- saga.schedule(...) */

/* The arguments of saga.schedule(). */
typedef struct Schedule
{
	char	   *name;
	char	   *definition;
	char	   *cron;
	Interval   *every;
	Jsonb	   *input;
	char	   *timezone;
	char	   *catch_up;
	char	   *overlap;
	char	   *time_field;
} Schedule;

static char *
text_arg(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

static char *
one_of(const char *argument, char *value, const char *const *allowed, const char *hint)
{
	for (int i = 0; allowed[i]; i++)
		if (strcmp(value, allowed[i]) == 0)
			return value;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for %s: \"%s\"", argument, value),
			 errhint("%s", hint)));
}

static void
read_arguments(FunctionCallInfo fcinfo, Schedule *s)
{
	static const char *const catch_ups[] = {"all", "last", "none", NULL};
	static const char *const overlaps[] = {"skip", "queue", "allow", NULL};

	s->name = text_arg(fcinfo, 0);
	s->definition = text_arg(fcinfo, 1);
	if (s->name == NULL || s->definition == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the name and the definition of a schedule must not be null")));
	if (s->name[0] == '\0' || strlen(s->name) > MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a schedule's name must have 1 to %d bytes", MAX_NAME_BYTES)));
	s->cron = text_arg(fcinfo, 2);
	s->every = PG_ARGISNULL(3) ? NULL : PG_GETARG_INTERVAL_P(3);
	if ((s->cron == NULL) == (s->every == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a schedule needs either cron or every")));
	s->input = PG_ARGISNULL(4) ?
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"))) :
		PG_GETARG_JSONB_P(4);
	s->timezone = PG_ARGISNULL(5) ? pstrdup("UTC") : text_arg(fcinfo, 5);
	s->catch_up = one_of("catch_up", PG_ARGISNULL(6) ? pstrdup("all") : text_arg(fcinfo, 6),
						 catch_ups, "Use 'all', 'last' or 'none'.");
	s->overlap = one_of("overlap", PG_ARGISNULL(7) ? pstrdup("skip") : text_arg(fcinfo, 7),
						overlaps, "Use 'skip', 'queue' or 'allow'.");
	s->time_field = text_arg(fcinfo, 8);
}

/* What every run will be asked, asked now. */
static TimestampTz
check_schedule(const Schedule *s, TimestampTz now, SagaTimes *times)
{
	SagaDefinition *def;
	TimestampTz next;

	saga_times_parse(times, s->cron, s->every, now, s->timezone);
	next = saga_times_next(times, now);
	if (next == DT_NOEND)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cron expression \"%s\" never comes", s->cron)));
	def = saga_definition_to_start(s->definition, 0);
	if (!JB_ROOT_IS_OBJECT(s->input))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the input of a schedule must be a JSON object")));
	(void) saga_definition_check_input(def, saga_schedule_input(s->input, s->time_field, next));
	return next;
}

/* Who has it now; InvalidOid if there is none.  Locks its row. */
static Oid
owner_of(const char *name)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	Datum		owner;
	bool		isnull;

	values[0] = CStringGetTextDatum(name);
	if (saga_spi_own("SELECT owner::pg_catalog.oid FROM saga.schedule WHERE name OPERATOR(pg_catalog.=) $1 FOR UPDATE",
					 1, types, values, NULL, &owner, &isnull) == 0)
		return InvalidOid;
	return DatumGetObjectId(owner);
}

static TimestampTz
write_schedule(const Schedule *s, Oid owner, TimestampTz now, TimestampTz next)
{
	/* what stays the same keeps its times */
	const char *sql =
		"INSERT INTO saga.schedule AS o (name, definition, cron, every, input, timezone, catch_up,"
		" overlap, time_field, owner, anchor, next_at, origin)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
		" ON CONFLICT (name) DO UPDATE SET definition = $2, cron = $3, every = $4, input = $5,"
		" timezone = $6, catch_up = $7, overlap = $8, time_field = $9, error = NULL,"
		" anchor = CASE WHEN (o.cron, o.every::text, o.timezone) IS NOT DISTINCT FROM ($3, $4::text, $6)"
		" THEN o.anchor ELSE $11 END,"
		" next_at = CASE WHEN (o.cron, o.every::text, o.timezone) IS NOT DISTINCT FROM ($3, $4::text, $6)"
		" THEN o.next_at ELSE $12 END,"
		" queued = CASE WHEN $8 = 'allow' OR (o.cron, o.every::text, o.timezone) IS DISTINCT FROM ($3, $4::text, $6)"
		" THEN '{}' ELSE o.queued END"
		" WHERE o.owner = $10 RETURNING next_at";
	Oid			types[13] = {TEXTOID, TEXTOID, TEXTOID, INTERVALOID, JSONBOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, REGROLEOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID};
	Datum		values[13];
	char		nulls[14] = "             ";
	Datum		result;
	bool		isnull;

	values[0] = CStringGetTextDatum(s->name);
	values[1] = CStringGetTextDatum(s->definition);
	nulls[2] = s->cron ? ' ' : 'n';
	values[2] = s->cron ? CStringGetTextDatum(s->cron) : (Datum) 0;
	nulls[3] = s->every ? ' ' : 'n';
	values[3] = IntervalPGetDatum(s->every);
	values[4] = JsonbPGetDatum(s->input);
	values[5] = CStringGetTextDatum(s->timezone);
	values[6] = CStringGetTextDatum(s->catch_up);
	values[7] = CStringGetTextDatum(s->overlap);
	nulls[8] = s->time_field ? ' ' : 'n';
	values[8] = s->time_field ? CStringGetTextDatum(s->time_field) : (Datum) 0;
	values[9] = ObjectIdGetDatum(owner);
	values[10] = TimestampTzGetDatum(now);
	values[11] = TimestampTzGetDatum(next);
	values[12] = Int32GetDatum(saga_origin());
	if (saga_spi_own(sql, 13, types, values, nulls, &result, &isnull) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("schedule \"%s\" was made by a concurrent transaction", s->name),
				 errhint("Try again.")));
	return DatumGetTimestampTz(result);
}

/* schedule(name, definition, cron, every, input, timezone, catch_up, overlap,
 * time_field) -> its next run */
Datum
saga_schedule(PG_FUNCTION_ARGS)
{
	Schedule	s;
	SagaTimes	times;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next;
	Oid			owner;

	read_arguments(fcinfo, &s);
	next = check_schedule(&s, now, &times);
	owner = owner_of(s.name);
	if (!OidIsValid(owner))
		owner = GetUserId();
	else if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of schedule \"%s\"", s.name),
				 errdetail("It belongs to role \"%s\".", GetUserNameFromId(owner, true))));
	next = write_schedule(&s, owner, now, next);
	saga_schedules_wake_at_commit();
	PG_RETURN_TIMESTAMPTZ(next);
}

/* unschedule(name): no more runs; those that have begun go on. */
Datum
saga_unschedule(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			owner = owner_of(name);
	Oid			types[1] = {TEXTOID};
	Datum		values[1];

	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("schedule \"%s\" does not exist", name),
				 errhint("saga.schedules lists those you may see.")));
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of schedule \"%s\"", name)));
	values[0] = CStringGetTextDatum(name);
	saga_spi_own("DELETE FROM saga.schedule WHERE name OPERATOR(pg_catalog.=) $1",
				 1, types, values, NULL, NULL, NULL);
	PG_RETURN_VOID();
}

/* cron_next(cron, timezone, after) */
Datum
saga_cron_next_time(PG_FUNCTION_ARGS)
{
	SagaCron	cron;
	TimestampTz after = PG_GETARG_TIMESTAMPTZ(2);
	TimestampTz next;

	saga_cron_parse(text_to_cstring(PG_GETARG_TEXT_PP(0)), &cron);
	if (TIMESTAMP_NOT_FINITE(after))
		PG_RETURN_NULL();
	next = saga_cron_next(&cron, saga_time_zone(text_to_cstring(PG_GETARG_TEXT_PP(1))), after);
	if (next == DT_NOEND)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(next);
}
