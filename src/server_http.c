/*
 * server_http.c
 *		Options of saga_http: checked when they are set, and turned into what
 *		connector_http.c needs.
 *
 * Called by CREATE/ALTER SERVER and USER MAPPING (the validator), and by
 * server.c when a server is looked up.  Opens no socket and resolves no name.
 * The value of a user mapping's option must never stand in a message.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <curl/curl.h>
#include <math.h>

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "compat.h"
#include "server_private.h"

PG_FUNCTION_INFO_V1(saga_http_validator);

#define DEFAULT_HTTP_POOL	64
#define MAX_HTTP_POOL		10000
#define MAX_RATE			1000000.0
#define HEADER_PREFIX		"header_"

static const SagaOptionSpec http_options[] = {
	{"url", ForeignServerRelationId, OPTION_URL, false, false},
	{"pool_size", ForeignServerRelationId, OPTION_INT, false, false},
	{"request_timeout", ForeignServerRelationId, OPTION_INTERVAL, false, false},
	{"connect_timeout", ForeignServerRelationId, OPTION_INTERVAL, false, false},
	{"max_response_size", ForeignServerRelationId, OPTION_SIZE, false, false},
	{"rate", ForeignServerRelationId, OPTION_RATE, false, false},
	{"allow_private", ForeignServerRelationId, OPTION_BOOL, false, false},
	{"sslrootcert", ForeignServerRelationId, OPTION_TEXT, true, false},
	{"bearer", UserMappingRelationId, OPTION_HEADER, false, false},
	{"user", UserMappingRelationId, OPTION_USER, false, false},
	{"password", UserMappingRelationId, OPTION_HEADER, false, false},
	{HEADER_PREFIX "<name>", UserMappingRelationId, OPTION_HEADER, false, false},
	{NULL, InvalidOid, OPTION_TEXT, false, false}
};

/* Headers that we send, or that say how the message is to be read. */
static const char *const own_headers[] = {
	"accept", "accept-encoding", "authorization", "connection",
	"content-encoding", "content-length", "content-type", "cookie", "expect",
	"host", "idempotency-key", "keep-alive", "te", "trailer", "traceparent",
	"tracestate", "transfer-encoding", "upgrade", "user-agent", NULL
};

/* ---- values ---- */

/* The host as it is written: between the slashes and what follows it. */
static char *
written_host(const char *url)
{
	const char *p = strstr(url, "://");
	const char *end;

	if (p == NULL)
		return pstrdup("");
	p += 3;
	end = *p == '[' ? p + strcspn(p, "]") : p + strcspn(p, ":/?#");
	if (*end == ']')
		end++;
	return pnstrdup(p, end - p);
}

static char *
url_part(CURLU *url, CURLUPart part)
{
	char	   *value = NULL;
	char	   *copy = NULL;

	if (curl_url_get(url, part, &value, 0) == CURLUE_OK && value)
		copy = pstrdup(value);
	curl_free(value);
	return copy;
}

typedef struct HttpUrl
{
	char	   *base;			/* scheme, host, port, path without final / */
	char	   *host;			/* without brackets */
	char	   *port;
} HttpUrl;

/* NULL if the parts are good, else what is needed. */
static const char *
url_parts_fault(CURLU *parsed, const char *value, HttpUrl *out)
{
	char	   *scheme = url_part(parsed, CURLUPART_SCHEME);
	char	   *host = url_part(parsed, CURLUPART_HOST);
	char	   *port = url_part(parsed, CURLUPART_PORT);
	char	   *path = url_part(parsed, CURLUPART_PATH);
	struct in_addr unused;
	int			number;
	size_t		len;

	if (scheme == NULL ||
		(strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0))
		return "A URL that begins with http:// or https:// is needed.";
	if (url_part(parsed, CURLUPART_USER) || url_part(parsed, CURLUPART_PASSWORD))
		return "A URL without credentials is needed; they belong into the user mapping.";
	if (url_part(parsed, CURLUPART_QUERY) || url_part(parsed, CURLUPART_FRAGMENT) ||
		strchr(value, '?') || strchr(value, '#'))
		return "A URL without a query and a fragment is needed.";
	if (host == NULL || host[0] == '\0' || url_part(parsed, CURLUPART_ZONEID))
		return "A URL with a host is needed.";
	for (const char *p = host; *p; p++)
	{
		if (IS_HIGHBIT_SET(*p) || iscntrl((unsigned char) *p) || strchr(" ,;%", *p))
			return "A host of letters, digits, hyphens and dots is needed; write others in their xn-- form.";
	}
	/* 2130706433, 0x7f.1 and the like are only good to deceive a reader */
	if (inet_pton(AF_INET, host, &unused) == 1 &&
		strcmp(host, written_host(value)) != 0)
		return "An address in the form 192.0.2.1 is needed.";
	if (port != NULL && !saga_option_int(port, 1, 65535, &number))
		return "A port number from 1 to 65535 is needed.";

	len = path ? strlen(path) : 0;
	while (len > 0 && path[len - 1] == '/')
		len--;
	out->base = psprintf("%s://%s%s%s%.*s", scheme, host, port ? ":" : "",
						 port ? port : "", (int) len, path ? path : "");
	len = strlen(host);
	out->host = host[0] == '[' ? pnstrdup(host + 1, len - 2) : host;
	out->port = port ? port : pstrdup(strcmp(scheme, "https") == 0 ? "443" : "80");
	return NULL;
}

static const char *
url_fault(const char *value, HttpUrl *out)
{
	static const char *const example = "A URL such as https://mail.example.com:8443/api is needed.";
	const char *volatile needed = example;
	CURLU	   *parsed;

	for (const char *p = value; *p; p++)
	{
		if (isspace((unsigned char) *p) || iscntrl((unsigned char) *p))
			return example;
	}
	parsed = curl_url();
	if (parsed == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	PG_TRY();
	{
		if (curl_url_set(parsed, CURLUPART_URL, value, 0) == CURLUE_OK)
			needed = url_parts_fault(parsed, value, out);
	}
	PG_FINALLY();
	{
		curl_url_cleanup(parsed);
	}
	PG_END_TRY();
	return needed;
}

static bool
parse_rate(const char *value, double *rate)
{
	char	   *end;

	errno = 0;
	*rate = strtod(value, &end);
	return errno == 0 && end != value && *end == '\0' && !isnan(*rate) &&
		*rate > 0 && *rate <= MAX_RATE;
}

static bool
parse_size(const char *value, int *size)
{
	return parse_int(value, size, GUC_UNIT_BYTE, NULL) && *size > 0;
}

/* libpq counts connect_timeout in seconds; so do we */
static int
bare_unit(const char *name)
{
	return strcmp(name, "connect_timeout") == 0 ? 1000 : 1;
}

static const char *
header_value_fault(const char *value)
{
	for (const char *p = value; *p; p++)
	{
		if (iscntrl((unsigned char) *p) && *p != '\t')
			return "A value of one line, without control characters, is needed.";
	}
	return value[0] == '\0' || isspace((unsigned char) value[0]) ||
		isspace((unsigned char) value[strlen(value) - 1]) ?
		"A value that is not empty, and has no space around it, is needed." : NULL;
}

/* NULL if the value is good, else what is needed. */
static const char *
value_fault(const SagaOptionSpec *spec, const char *value)
{
	HttpUrl		unused;
	double		rate;
	int			n;
	bool		b;

	switch (spec->type)
	{
		case OPTION_URL:
			return url_fault(value, &unused);
		case OPTION_INT:
			return saga_option_int(value, 1, MAX_HTTP_POOL, &n) ? NULL :
				"A number from 1 to 10000 is needed.";
		case OPTION_INTERVAL:
			return saga_option_ms(value, bare_unit(spec->name), &n) && n > 0 ? NULL :
				"A positive time such as 500ms, 5s or 1min is needed.";
		case OPTION_SIZE:
			return parse_size(value, &n) ? NULL :
				"A positive size such as 64kB or 1MB is needed.";
		case OPTION_RATE:
			return parse_rate(value, &rate) ? NULL :
				"A positive number of calls per second is needed.";
		case OPTION_BOOL:
			return parse_bool(value, &b) ? NULL :
				"A boolean (true or false) is needed.";
		case OPTION_USER:
			if (strchr(value, ':') != NULL)
				return "A name without a colon is needed.";
			return header_value_fault(value);
		case OPTION_HEADER:
			return header_value_fault(value);
		default:
			return value[0] == '\0' ? "A value is needed." : NULL;
	}
}

/* ---- headers of a user mapping ---- */

/* The header's name for an option's: SQL folds case, and knows no hyphens. */
static char *
header_name(const char *option)
{
	char	   *name = pstrdup(option + strlen(HEADER_PREFIX));

	for (char *p = name; *p; p++)
	{
		if (*p == '_')
			*p = '-';
	}
	return name;
}

static bool
is_header_option(const char *name)
{
	return strncmp(name, HEADER_PREFIX, strlen(HEADER_PREFIX)) == 0;
}

static void
check_header_option(const char *option)
{
	char	   *name = header_name(option);
	bool		own = pg_strncasecmp(name, "saga-", 5) == 0;

	for (const char *p = name; *p; p++)
	{
		if (!isalnum((unsigned char) *p) && *p != '-')
			name = "";
	}
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"%s\" names no header", option),
				 errhint("A header's name has letters, digits and hyphens, for which underscores stand: header_x_api_key is X-Api-Key.")));
	for (int i = 0; own_headers[i]; i++)
		own |= pg_strcasecmp(name, own_headers[i]) == 0;
	if (own)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("header \"%s\" cannot be set", name),
				 errhint("Options bearer, or user and password, make the Authorization header; the others are saga's or the protocol's own.")));
}

/* ---- the validator ---- */

static void
check_option(DefElem *def, Oid catalog)
{
	const SagaOptionSpec *spec = saga_find_option(http_options, def->defname);
	char	   *value;

	if (is_header_option(def->defname) && catalog == UserMappingRelationId)
	{
		check_header_option(def->defname);
		spec = saga_find_option(http_options, HEADER_PREFIX "<name>");
	}
	if (spec == NULL || spec->catalog != catalog)
		saga_unknown_option(http_options, def->defname, catalog);
	value = defGetString(def);
	saga_require_option(spec, catalog, value, value_fault(spec, value));
}

static bool
has_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		if (strcmp(((DefElem *) lfirst(lc))->defname, name) == 0)
			return true;
	}
	return false;
}

Datum
saga_http_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	foreach(lc, options)
		check_option((DefElem *) lfirst(lc), catalog);
	if (catalog == ForeignServerRelationId && !has_option(options, "url"))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED),
				 errmsg("option \"url\" is required"),
				 errhint("Write OPTIONS (url 'https://...').")));
	if (catalog == UserMappingRelationId)
	{
		if (has_option(options, "password") && !has_option(options, "user"))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("option \"password\" needs option \"user\"")));
		if (has_option(options, "bearer") && has_option(options, "user"))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("options \"bearer\" and \"user\" exclude each other"),
					 errhint("Both make the Authorization header.")));
	}
	PG_RETURN_VOID();
}

/* ---- from catalog to what a connector needs ---- */

static void
take_option(SagaServer *server, int maxpairs, const char *name,
			const char *value)
{
	HttpUrl		url;

	if (strcmp(name, "url") == 0)
	{
		if (url_fault(value, &url) != NULL)
			return;
		saga_server_add(server, maxpairs, "base", url.base);
		saga_server_add(server, maxpairs, "host", url.host);
		saga_server_add(server, maxpairs, "port", url.port);
	}
	else if (strcmp(name, "pool_size") == 0)
		(void) saga_option_int(value, 1, MAX_HTTP_POOL, &server->pool_size);
	else if (strcmp(name, "request_timeout") == 0)
		(void) saga_option_ms(value, bare_unit(name), &server->request_timeout_ms);
	else if (strcmp(name, "connect_timeout") == 0)
		(void) saga_option_ms(value, bare_unit(name), &server->connect_timeout_ms);
	else if (strcmp(name, "max_response_size") == 0)
		(void) parse_size(value, &server->max_response);
	else if (strcmp(name, "rate") == 0)
		(void) parse_rate(value, &server->rate);
	else if (strcmp(name, "allow_private") == 0)
		(void) parse_bool(value, &server->allow_private);
	else if (is_header_option(name))
		saga_server_add(server, maxpairs,
						psprintf(HEADER_PREFIX "%s", header_name(name)), value);
	else if (saga_find_option(http_options, name) != NULL)
		saga_server_add(server, maxpairs, pstrdup(name), value);
}

bool
saga_server_take_http(SagaServer *server, int maxpairs, List *options,
					  List *mapping)
{
	ListCell   *lc;

	server->pool_size = DEFAULT_HTTP_POOL;
	foreach(lc, options)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		take_option(server, maxpairs, def->defname, defGetString(def));
	}
	foreach(lc, mapping)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		take_option(server, maxpairs, def->defname, defGetString(def));
	}
	return saga_server_value(server, "base") != NULL;
}
