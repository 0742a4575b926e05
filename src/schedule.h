/*
 * schedule.h
 *		Sagas that are started by the clock.
 *
 * schedule.c is the session's side; schedule_run.c the executor's, which
 * starts what is due, and that of coordinator 0, which has it do so.
 */
#ifndef SAGA_SCHEDULE_H
#define SAGA_SCHEDULE_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "cron.h"

/* When a schedule runs. */
typedef struct SagaTimes
{
	bool		by_cron;
	SagaCron	cron;
	Interval	every;
	TimestampTz anchor;			/* 'every' is counted from here */
	pg_tz	   *zone;
} SagaTimes;

extern void saga_times_parse(SagaTimes *times, const char *cron, const Interval *every,
							 TimestampTz anchor, const char *zone);

/* The first time after 'after'; DT_NOEND if there is none. */
extern TimestampTz saga_times_next(const SagaTimes *times, TimestampTz after);

/* The input of the run of a time: as given, and the time where it is asked for. */
extern Jsonb *saga_schedule_input(Jsonb *input, const char *time_field, TimestampTz at);

/* A time as text that means the same everywhere: ISO 8601 in UTC. */
extern char *saga_schedule_time_text(TimestampTz at);

/* ---- an executor, outside a transaction ---- */
extern void saga_schedules_run(void);

/* ---- coordinator 0 ---- */

/* In a transaction: have an executor start what is due. */
extern void saga_schedules_look(bool poll_tables);

/* ... the executor has done so, or is gone. */
extern void saga_schedules_ran(void);

/* When saga_schedules_look() next has something to do. */
extern TimestampTz saga_schedules_due(void);

#endif							/* SAGA_SCHEDULE_H */
