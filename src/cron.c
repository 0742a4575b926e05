/*
 * cron.c
 *		Cron expressions, and local times as instants (see cron.h).
 *
 * Where clocks are put forward, a time that is skipped means the first instant
 * after the gap; where they are put back, a time that comes twice means the
 * first of the two.  An expression whose hour is '*' is about minutes that
 * pass, not about what clocks show: it runs in each hour that there is.
 */
#include "postgres.h"

#include "utils/datetime.h"

#include "cron.h"

/* Twenty-ninths of February that must be a given weekday are this far apart. */
#define SEARCH_DAYS		(41 * 366)

#define DAY_SECS		INT64CONST(86400)

typedef struct Field
{
	const char *name;
	int			min;
	int			max;
	const char *const *names;	/* of min, min + 1, ...; or NULL */
} Field;

static const char *const month_names[] = {
	"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct",
	"nov", "dec", NULL
};

static const char *const weekday_names[] = {
	"sun", "mon", "tue", "wed", "thu", "fri", "sat", NULL
};

/* 7 is Sunday, too. */
static const Field fields[] = {
	{"minute", 0, 59, NULL},
	{"hour", 0, 23, NULL},
	{"day of month", 1, 31, NULL},
	{"month", 1, 12, month_names},
	{"day of week", 0, 7, weekday_names},
};

static const struct
{
	const char *name;
	const char *means;
}			nicknames[] =
{
	{"@yearly", "0 0 1 1 *"},
	{"@annually", "0 0 1 1 *"},
	{"@monthly", "0 0 1 * *"},
	{"@weekly", "0 0 * * 0"},
	{"@daily", "0 0 * * *"},
	{"@midnight", "0 0 * * *"},
	{"@hourly", "0 * * * *"},
};

/* ------------------------------------------------------------- parsing */

static void pg_attribute_noreturn()
bad_expression(const char *text, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid cron expression: \"%s\"", text),
			 errdetail_internal("%s", detail),
			 errhint("It has five fields: minute, hour, day of month, month, day of week, for example '30 2 * * mon-fri'; or it is one of @hourly, @daily, @weekly, @monthly, @yearly.")));
}

/* A number or a name; returns what follows it. */
static const char *
parse_value(const char *text, const Field *field, const char *item,
			const char *p, int *value)
{
	int			n = 0;

	while (isdigit((unsigned char) p[n]))
		n++;
	if (n > 0)
	{
		*value = n > 4 ? 10000 : atoi(pnstrdup(p, n));
		if (*value < field->min || *value > field->max)
			bad_expression(text, psprintf("The %s \"%s\" is not between %d and %d.",
										  field->name, item, field->min, field->max));
		return p + n;
	}
	while (isalpha((unsigned char) p[n]))
		n++;
	for (int i = 0; n == 3 && field->names && field->names[i]; i++)
		if (pg_strncasecmp(p, field->names[i], 3) == 0)
		{
			*value = field->min + i;
			return p + n;
		}
	bad_expression(text, psprintf("The %s \"%s\" is not understood.", field->name, item));
}

/* One item of a list: '*', a value or a range, perhaps with a step. */
static uint64
parse_item(const char *text, const Field *field, const char *item)
{
	const char *p = item;
	int			first = field->min;
	int			last = field->names == weekday_names ? 6 : field->max;
	int			step = 1;
	bool		single = false;
	uint64		set = 0;

	if (*p == '*')
		p++;
	else
	{
		p = parse_value(text, field, item, p, &first);
		single = true;
		if (*p == '-')
		{
			p = parse_value(text, field, item, p + 1, &last);
			single = false;
			if (last == 0 && first > 0 && field->names == weekday_names)
				last = 7;		/* fri-sun */
			if (last < first)
				bad_expression(text, psprintf("The %s \"%s\" ends before it begins.",
											  field->name, item));
		}
	}
	if (*p == '/')
	{
		int			n = strspn(p + 1, "0123456789");

		step = n > 0 && n <= 4 ? atoi(p + 1) : 0;
		if (step < 1 || p[1 + n] != '\0')
			bad_expression(text, psprintf("The step of the %s \"%s\" is not a number from 1 on.",
										  field->name, item));
		single = false;
	}
	else if (*p != '\0')
		bad_expression(text, psprintf("The %s \"%s\" is not understood.", field->name, item));
	if (single)
		last = first;
	for (int v = first; v <= last; v += step)
		set |= UINT64CONST(1) << v;
	return set;
}

static uint64
parse_field(const char *text, const Field *field, const char *value)
{
	uint64		set = 0;
	char	   *copy = pstrdup(value);

	for (char *item = copy; item != NULL;)
	{
		char	   *comma = strchr(item, ',');

		if (comma)
			*comma = '\0';
		if (*item == '\0')
			bad_expression(text, psprintf("The %s \"%s\" has an empty item.", field->name, value));
		set |= parse_item(text, field, item);
		item = comma ? comma + 1 : NULL;
	}
	return set;
}

void
saga_cron_parse(const char *text, SagaCron *cron)
{
	const char *source = text;
	char	   *copy;
	char	   *rest;
	char	   *word;
	char	   *words[lengthof(fields)];
	uint64		sets[lengthof(fields)];
	int			n = 0;

	if (text[0] == '@')
	{
		source = NULL;
		for (int i = 0; i < (int) lengthof(nicknames); i++)
			if (pg_strcasecmp(text, nicknames[i].name) == 0)
				source = nicknames[i].means;
		if (source == NULL)
			bad_expression(text, "There is no such nickname.");
	}
	copy = pstrdup(source);
	for (word = strtok_r(copy, " \t\n\r", &rest); word; word = strtok_r(NULL, " \t\n\r", &rest))
	{
		if (n < (int) lengthof(fields))
			words[n] = word;
		n++;
	}
	if (n != (int) lengthof(fields))
		bad_expression(text, psprintf(n == 1 ? "It has %d field." : "It has %d fields.", n));
	for (int i = 0; i < (int) lengthof(fields); i++)
		sets[i] = parse_field(text, &fields[i], words[i]);

	cron->minutes = sets[0];
	cron->hours = (uint32) sets[1];
	cron->days = (uint32) sets[2];
	cron->months = (uint32) sets[3];
	cron->weekdays = (uint32) (sets[4] | sets[4] >> 7) & 0x7f;
	cron->every_hour = words[1][0] == '*';
	cron->both_days = words[2][0] == '*' || words[4][0] == '*';
}

/* ----------------------------------------------------------- the clock */

/* Local time minus UTC, in seconds. */
static int64
offset_at(pg_time_t at, pg_tz *zone)
{
	struct pg_tm *tm = pg_localtime(&at, zone);

	return tm ? tm->tm_gmtoff : 0;
}

/*
 * The instants at which clocks show a local time (seconds since 1970 on that
 * clock): how many, the earlier first.  None: instants[0] is the next valid one.
 */
static int
instants_of(int64 local, pg_tz *zone, pg_time_t instants[2])
{
	int64		before = offset_at(local - DAY_SECS, zone);
	int64		after = offset_at(local + DAY_SECS, zone);
	pg_time_t	low,
				high;
	int			n = 0;

	if (offset_at(local - before, zone) == before)
		instants[n++] = local - before;
	if (after != before && offset_at(local - after, zone) == after)
		instants[n++] = local - after;
	if (n > 0)
		return n;

	/* skipped: the instant of the change lies between */
	low = local - DAY_SECS;
	high = local + DAY_SECS;
	while (high - low > 1)
	{
		pg_time_t	middle = low + (high - low) / 2;

		if (offset_at(middle, zone) == before)
			low = middle;
		else
			high = middle;
	}
	instants[0] = high;
	return 0;
}

TimestampTz
saga_local_instant(Timestamp local, pg_tz *zone)
{
	int64		us = local % USECS_PER_SEC;
	int64		secs;
	pg_time_t	instants[2];
	bool		skipped;

	if (us < 0)
		us += USECS_PER_SEC;
	secs = (local - us) / USECS_PER_SEC +
		(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
	skipped = instants_of(secs, zone, instants) == 0;
	return time_t_to_timestamptz(instants[0]) + (skipped ? 0 : us);
}

Timestamp
saga_local_time(TimestampTz at, pg_tz *zone)
{
	return at + offset_at(timestamptz_to_time_t(at), zone) * USECS_PER_SEC;
}

pg_tz *
saga_time_zone(const char *name)
{
	pg_tz	   *zone = pg_tzset(name);

	if (zone == NULL || !pg_tz_acceptable(zone))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time zone \"%s\" is not recognized", name),
				 errhint("pg_timezone_names lists them.")));
	return zone;
}

/* ------------------------------------------------------------ next time */

static bool
day_matches(const SagaCron *cron, int julian)
{
	int			year,
				month,
				day;
	bool		in_month,
				in_week;

	j2date(julian, &year, &month, &day);
	if (!(cron->months & (1 << month)))
		return false;
	in_month = (cron->days & (1U << day)) != 0;
	in_week = (cron->weekdays & (1 << j2day(julian))) != 0;
	return cron->both_days ? in_month && in_week : in_month || in_week;
}

/* The first instant of a local day that is later than 'after'; false: none. */
static bool
first_of_day(const SagaCron *cron, pg_tz *zone, int julian, pg_time_t after,
			 pg_time_t *first)
{
	int64		midnight = (int64) (julian - UNIX_EPOCH_JDATE) * DAY_SECS;
	int64		offset = offset_at(midnight - DAY_SECS, zone);
	bool		changes = offset != offset_at(midnight + 2 * DAY_SECS, zone);
	bool		found = false;

	for (int hour = 0; hour < HOURS_PER_DAY; hour++)
	{
		if (!(cron->hours & (1 << hour)))
			continue;
		for (int minute = 0; minute < MINS_PER_HOUR; minute++)
		{
			int64		local = midnight + hour * SECS_PER_HOUR + minute * SECS_PER_MINUTE;
			pg_time_t	instants[2];
			int			n = 1;

			if (!(cron->minutes & (UINT64CONST(1) << minute)))
				continue;
			if (!changes)
				instants[0] = local - offset;
			else
			{
				n = instants_of(local, zone, instants);
				if (!cron->every_hour)
					n = 1;
			}
			for (int i = 0; i < n; i++)
				if (instants[i] > after && (!found || instants[i] < *first))
				{
					*first = instants[i];
					found = true;
				}
		}
	}
	return found;
}

TimestampTz
saga_cron_next(const SagaCron *cron, pg_tz *zone, TimestampTz after)
{
	pg_time_t	from = timestamptz_to_time_t(after);
	int64		local = from + offset_at(from, zone);
	int			julian = (int) (local / DAY_SECS) + UNIX_EPOCH_JDATE;
	pg_time_t	first;
	pg_time_t	next_day;

	/* clocks that are put back over midnight: the days around it overlap */
	for (int i = -1; i < SEARCH_DAYS; i++)
	{
		if (!day_matches(cron, julian + i) ||
			!first_of_day(cron, zone, julian + i, from, &first))
			continue;
		if (day_matches(cron, julian + i + 1) &&
			first_of_day(cron, zone, julian + i + 1, from, &next_day) &&
			next_day < first)
			first = next_day;
		return time_t_to_timestamptz(first);
	}
	return DT_NOEND;
}
