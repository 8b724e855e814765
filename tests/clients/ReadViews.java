import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** ReadViews PORT: pgjdbc asks the server, over Postgres wire. Exits with 1 and says which comparisons failed. */
public final class ReadViews {
    private static final String COUNTS = "SELECT video_id, total_views FROM video_views ORDER BY video_id";
    private static final String ONE = "SELECT total_views FROM video_views WHERE video_id = ?";
    private static final String ENDLESS =
        "SELECT count(*) FROM raw.video_views a, raw.video_views b, raw.video_views c, raw.video_views d "
            + "WHERE a.view_duration + b.view_duration + c.view_duration + d.view_duration = 7";

    private static int made;
    private static int faults;

    private interface Work {
        void run() throws Exception;
    }

    private static void same(String what, Object found, Object wanted) {
        made++;
        if (!Objects.equals(found, wanted)) {
            faults++;
            System.out.println(what + ": " + shown(found) + ", not " + shown(wanted));
        }
    }

    private static String shown(Object value) {
        String text = String.valueOf(value);
        return text.substring(0, Math.min(300, text.length()));
    }

    private static String state(Work work) throws Exception {
        try {
            work.run();
            return "no error";
        } catch (SQLException error) {
            return error.getSQLState();
        }
    }

    private static List<List<Object>> rows(ResultSet result, int... columns) throws SQLException {
        List<List<Object>> all = new ArrayList<>();
        while (result.next()) {
            List<Object> row = new ArrayList<>();
            for (int column : columns) {
                row.add(result.getObject(column));
            }
            all.add(row);
        }
        return all;
    }

    private static Connection connect(String port, String user) throws SQLException {
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + port + "/viewledger?user=" + user);
    }

    private static void describe(Connection connection) throws SQLException {
        DatabaseMetaData about = connection.getMetaData();
        List<List<Object>> schemas = rows(about.getSchemas(), 1);
        same("schemas", schemas.containsAll(List.of(List.of("public"), List.of("raw"), List.of("batch"))), true);
        List<List<Object>> tables = rows(about.getTables(null, "public", "%", new String[] {"TABLE", "VIEW"}), 3);
        same("tables", tables.containsAll(List.of(List.of("video_views"), List.of("exclusions"))), true);
        List<List<Object>> columns = rows(about.getColumns(null, "public", "exclusions", "%"), 4, 6);
        same("columns", columns,
            List.of(List.of("event_id", "text"), List.of("reason", "text"), List.of("recorded_at", "timestamptz")));
        same("types", rows(about.getTypeInfo(), 1).contains(List.of("int8")), true);
        same("table types", rows(about.getTableTypes(), 1).contains(List.of("TABLE")), true);
        same("isolation", about.getDefaultTransactionIsolation(), Connection.TRANSACTION_REPEATABLE_READ);
        about.getPrimaryKeys(null, "public", "exclusions").close();
        about.getImportedKeys(null, "public", "exclusions").close();
        about.getIndexInfo(null, "public", "exclusions", false, false).close();
        about.getTablePrivileges(null, "public", "%").close();
        about.getProcedures(null, null, "%").close();
    }

    private static void read(Connection connection) throws Exception {
        List<List<Object>> counts;
        try (Statement statement = connection.createStatement()) {
            counts = rows(statement.executeQuery(COUNTS), 1, 2);
        }
        same("there is something", counts.size() > 100, true);
        try (PreparedStatement statement = connection.prepareStatement(ONE)) {
            // From the fifth execution on, pgjdbc uses a named statement and the binary format.
            for (int i = 0; i < 8; i++) {
                statement.setString(1, (String) counts.get(i).get(0));
                same("a parameter", rows(statement.executeQuery(), 1), List.of(counts.get(i).subList(1, 2)));
            }
        }
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(7);
            same("in portions", rows(statement.executeQuery(COUNTS), 1, 2), counts);
        }
        connection.commit();
        connection.setAutoCommit(true);
        StringWriter lines = new StringWriter();
        CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
        same("COPY TO", copies.copyOut("COPY (" + COUNTS + ") TO STDOUT", lines), (long) counts.size());
        same("a wrong column", state(() -> connection.createStatement().executeQuery("SELECT nothing FROM video_views")), "42703");
        try (Statement statement = connection.createStatement()) {
            Timer timer = new Timer(true);
            timer.schedule(new TimerTask() {
                @Override
                public void run() {
                    try {
                        statement.cancel();
                    } catch (SQLException error) {
                        System.out.println("cancel: " + error.getMessage());
                    }
                }
            }, 300);
            same("cancel", state(() -> statement.executeQuery(ENDLESS)), "57014");
            timer.cancel();
            statement.setQueryTimeout(1);
            same("a timeout", state(() -> statement.executeQuery(ENDLESS)), "57014");
        }
    }

    private static void write(Connection connection) throws Exception {
        String id = "00000000-0000-4000-8000-0000000000";
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO exclusions VALUES (?, ?, ?)")) {
            for (int i = 10; i < 12; i++) {
                insert.setString(1, id + i);
                insert.setString(2, "by java");
                insert.setTimestamp(3, new Timestamp(0));
                insert.addBatch();
            }
            same("a batch", Arrays.toString(insert.executeBatch()), "[1, 1]");
        }
        CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
        String rows = id + "12\tby java\t2026-01-01\n" + id + "13\tby java\t2026-01-01\n";
        same("COPY FROM", copies.copyIn("COPY exclusions FROM STDIN", new StringReader(rows)), 2L);
        same("a wrong line", state(() -> copies.copyIn("COPY exclusions FROM STDIN", new StringReader("only\n"))), "22P04");
        try (Statement statement = connection.createStatement()) {
            same("DELETE", statement.executeUpdate("DELETE FROM exclusions WHERE reason = 'by java'"), 4);
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = connect(arguments[0], "analyst")) {
            describe(connection);
            read(connection);
        }
        try (Connection connection = connect(arguments[0], "billing")) {
            write(connection);
        }
        System.out.println("pgjdbc: " + made + " comparisons, " + faults + " faults");
        System.exit(faults == 0 ? 0 : 1);
    }
}
