/*
 * rights.c
 *		Who may do what with a definition and its sagas (see rights.h).
 *
 * Owns saga.privilege.  Runs in sessions, but for saga_owner_may_run_local(),
 * which executors ask too.  Decides from the name cache of
 * definition_cache.c; views ask once a row.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "compat.h"
#include "define.h"
#include "guc.h"
#include "rights.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_may);
PG_FUNCTION_INFO_V1(saga_grant);
PG_FUNCTION_INFO_V1(saga_revoke);
PG_FUNCTION_INFO_V1(saga_alter_owner);

static const struct
{
	const char *name;
	int			mask;
}			privilege_names[] =
{
	{"start", SAGA_PRIV_START},
	{"signal", SAGA_PRIV_SIGNAL},
	{"see", SAGA_PRIV_SEE},
	{"operate", SAGA_PRIV_OPERATE},
};

static int
privilege_from_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(privilege_names); i++)
		if (strcmp(privilege_names[i].name, name) == 0)
			return privilege_names[i].mask;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized privilege: \"%s\"", name),
			 errhint("Privileges are start, signal, see and operate.")));
}

int
saga_privilege_mask(ArrayType *names)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	int			mask = 0;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a privilege must not be null")));
		mask |= privilege_from_name(TextDatumGetCString(elems[i]));
	}
	return mask;
}

static ArrayType *
mask_to_array(int mask)
{
	Datum		elems[lengthof(privilege_names)];
	int			n = 0;

	for (int i = 0; i < (int) lengthof(privilege_names); i++)
		if (mask & privilege_names[i].mask)
			elems[n++] = CStringGetTextDatum(privilege_names[i].name);
	return construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT);
}

bool
saga_may_change(Oid role, Oid owner)
{
	return has_privs_of_role(role, owner);	/* true for superusers */
}

static bool
is_member_of(Oid role, const char *group)
{
	Oid			oid = get_role_oid(group, true);

	return OidIsValid(oid) && has_privs_of_role(role, oid);
}

static bool
has_privilege(const char *definition, Oid role, int mask)
{
	const SagaNameEntry *entry;

	if (superuser_arg(role))
		return true;
	if ((mask & (SAGA_PRIV_OPERATE | SAGA_PRIV_SEE)) == mask &&
		is_member_of(role, "saga_operator"))
		return true;
	if (mask == SAGA_PRIV_SEE && is_member_of(role, "saga_monitor"))
		return true;

	entry = saga_definition_name(definition);
	if (entry == NULL)
		return false;
	if (has_privs_of_role(role, entry->owner))
		return true;
	for (int i = 0; i < entry->ngrants; i++)
		if ((entry->grants[i].privileges & mask) == mask &&
			has_privs_of_role(role, entry->grants[i].grantee))
			return true;
	return false;
}

bool
saga_has_privilege(const char *definition, Oid role, const char *priv)
{
	return has_privilege(definition, role, privilege_from_name(priv));
}

void
saga_require_privilege(const char *definition, const char *priv)
{
	if (saga_has_privilege(definition, GetUserId(), priv))
		return;
	if (saga_definition_name(definition) == NULL)
		saga_no_such_definition(definition);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for saga definition \"%s\"", definition),
			 errhint("Its owner can run saga.grant('%s', '%s', '{%s}').",
					 definition, GetUserNameFromId(GetUserId(), true), priv)));
}

bool
saga_owner_may_run_local(Oid owner)
{
	return saga_allow_superuser_steps || !superuser_arg(owner);
}

/* saga.may(definition text, privilege text) */
Datum
saga_may(PG_FUNCTION_ARGS)
{
	char	   *definition = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *privilege = text_to_cstring(PG_GETARG_TEXT_PP(1));

	PG_RETURN_BOOL(saga_has_privilege(definition, GetUserId(), privilege));
}

/* ---- granting ---- */

/* The definition's entry; 42704 or 42501 unless the user may change it. */
static const SagaNameEntry *
entry_to_change(const char *definition)
{
	const SagaNameEntry *entry;

	saga_definition_lock_name(definition);
	entry = saga_definition_name(definition);
	if (entry == NULL)
		saga_no_such_definition(definition);
	if (!saga_may_change(GetUserId(), entry->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of saga definition \"%s\"", definition)));
	return entry;
}

static Oid
role_argument(Name name)
{
	if (strcmp(NameStr(*name), "public") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("privileges on a saga cannot be granted to everybody"),
				 errhint("Make a role of those who need it, and grant to that.")));
	return get_role_oid(NameStr(*name), false);
}

static void
set_privileges(const char *definition, Oid grantee, int mask)
{
	Oid			types[3] = {TEXTOID, REGROLEOID, TEXTARRAYOID};
	Datum		values[3];

	values[0] = CStringGetTextDatum(definition);
	values[1] = ObjectIdGetDatum(grantee);
	values[2] = PointerGetDatum(mask_to_array(mask));
	if (mask == 0)
		saga_spi_own("DELETE FROM saga.privilege WHERE definition = $1 AND grantee = $2",
					 2, types, values, NULL, NULL, NULL);
	else
		saga_spi_own("INSERT INTO saga.privilege (definition, grantee, privileges) VALUES ($1, $2, $3) "
					 "ON CONFLICT (definition, grantee) DO UPDATE SET privileges = EXCLUDED.privileges",
					 3, types, values, NULL, NULL, NULL);
	saga_privileges_changed();
}

static int
granted_mask(const SagaNameEntry *entry, Oid grantee)
{
	for (int i = 0; i < entry->ngrants; i++)
		if (entry->grants[i].grantee == grantee)
			return entry->grants[i].privileges;
	return 0;
}

static void
change_privileges(FunctionCallInfo fcinfo, bool grant)
{
	char	   *definition = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			grantee = role_argument(PG_GETARG_NAME(1));
	int			mask = saga_privilege_mask(PG_GETARG_ARRAYTYPE_P(2));
	int			before = granted_mask(entry_to_change(definition), grantee);
	int			after = grant ? before | mask : before & ~mask;

	if (after != before)
		set_privileges(definition, grantee, after);
}

/* saga.grant(definition text, role name, privileges text[]) */
Datum
saga_grant(PG_FUNCTION_ARGS)
{
	change_privileges(fcinfo, true);
	PG_RETURN_VOID();
}

/* saga.revoke(definition text, role name, privileges text[]) */
Datum
saga_revoke(PG_FUNCTION_ARGS)
{
	change_privileges(fcinfo, false);
	PG_RETURN_VOID();
}

/* saga.alter_owner(definition text, role name): as ALTER ... OWNER TO. */
Datum
saga_alter_owner(PG_FUNCTION_ARGS)
{
	char	   *definition = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			owner = get_role_oid(NameStr(*PG_GETARG_NAME(1)), false);
	Oid			types[2] = {TEXTOID, REGROLEOID};
	Datum		values[2];

	(void) entry_to_change(definition);
	if (!is_member_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be member of role \"%s\"",
						GetUserNameFromId(owner, true))));
	if (!saga_owner_may_run_local(owner) &&
		saga_definition_has_local(saga_definition_by_name(definition, 0)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a superuser cannot own saga definition \"%s\", which acts in this database",
						definition),
				 errhint("Choose an ordinary role, or set saga.allow_superuser_steps.")));
	values[0] = CStringGetTextDatum(definition);
	values[1] = ObjectIdGetDatum(owner);
	saga_spi_own("UPDATE saga.definition SET owner = $2 WHERE name = $1",
				 2, types, values, NULL, NULL, NULL);
	saga_definitions_changed();
	PG_RETURN_VOID();
}
