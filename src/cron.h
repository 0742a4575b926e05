/*
 * cron.h
 *		Times of the clock: cron expressions, and local times as instants.
 *
 * Knows no table, no SPI and no setting; may be called from everywhere.
 */
#ifndef SAGA_CRON_H
#define SAGA_CRON_H

#include "postgres.h"

#include "pgtime.h"
#include "utils/timestamp.h"

/* A parsed expression: a set of values for each field, as bits. */
typedef struct SagaCron
{
	uint64		minutes;		/* 0-59 */
	uint32		hours;			/* 0-23 */
	uint32		days;			/* 1-31 */
	uint32		months;			/* 1-12 */
	uint32		weekdays;		/* 0-6, Sunday is 0 */
	bool		every_hour;		/* the hour begins with '*': clock changes
								 * neither skip nor repeat a run */
	bool		both_days;		/* day of month or week begins with '*': a day
								 * must match both, else either */
} SagaCron;

/* 22023 naming the field, if it is none. */
extern void saga_cron_parse(const char *text, SagaCron *cron);

/* The first time after 'after', DT_NOEND if there is none. */
extern TimestampTz saga_cron_next(const SagaCron *cron, pg_tz *zone,
								  TimestampTz after);

/*
 * The instant at which clocks show this local time: the first of two, and the
 * next valid one if clocks skip it.
 */
extern TimestampTz saga_local_instant(Timestamp local, pg_tz *zone);

/* What clocks show at an instant. */
extern Timestamp saga_local_time(TimestampTz at, pg_tz *zone);

/* 22023 if there is no such time zone. */
extern pg_tz *saga_time_zone(const char *name);

#endif							/* SAGA_CRON_H */
